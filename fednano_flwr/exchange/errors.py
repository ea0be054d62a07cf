"""What a call of the LLM service can end with."""

from __future__ import annotations


class FeaturesMissingError(LookupError):
    """The host lacks the features of these keys; send them and ask again."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        super().__init__(keys)
        self.keys = keys

    def __str__(self) -> str:
        return f"{len(self.keys)} features are not at the host"


class GoneError(LookupError):
    """The host no longer has what it kept of an earlier call."""


class GraphGoneError(GoneError):
    """The host no longer has the graph of a `forward`; do it again."""


class CacheGoneError(GoneError):
    """The host no longer has this room, or what was read into it; begin again with all tokens."""


class SessionGoneError(GoneError):
    """The host no longer has this client's training; begin the round anew."""


class RefusalError(ValueError):
    """The host will not serve this request; the text goes back to the client."""


class HostBusyError(RuntimeError):
    """The host has no room for the request now; ask again later."""


class HostRefusedError(RuntimeError):
    """The host read the request and will not serve it; do not repeat it."""


class NoRoomError(HostRefusedError):
    """The host has no room for the answers of so large a batch, however long it is waited for."""


class HostUnreachableError(ConnectionError):
    """The host did not answer within the time that retries may take."""
