"""What sessions have led to, in the ServerApp's process until their round is merged.

So a replica that is lost after a client has ended its session costs nothing.
"""

from __future__ import annotations

from typing import Any

from fednano_flwr.exchange.at_host import SessionResult, Turn
from fednano_flwr.exchange.protocol import LLMInfo, LLMService, SessionGoneError


class FinishedSessions(LLMService):
    """An `LLMService` that keeps the results of another one's sessions; for several threads.

    Args:
        host: what answers all calls.
    """

    def __init__(self, host: LLMService) -> None:
        self._host = host
        self._results: dict[tuple[bytes, int], SessionResult] = {}

    def describe(self) -> LLMInfo:
        return self._host.describe()

    def end(self, turn: Turn, owner: bytes = b"") -> None:
        """See `LLMService.end`; one that has ended may be ended again."""
        key = owner, turn.session
        if key in self._results:
            return
        try:
            result = self._host.end(turn, owner)
        except SessionGoneError:
            if key in self._results:  # by the same call, made twice
                return
            raise
        assert result is not None
        self._results[key] = result

    def result(self, owner: bytes, session: int) -> SessionResult:
        """Of a session that has ended.

        Raises:
            ValueError: the owner has ended none of this number.
        """
        try:
            return self._results[owner, session]
        except KeyError:
            raise ValueError(f"no session {session} of this client has ended") from None

    def forget_sessions(self) -> None:
        """See `LLMService.forget_sessions`."""
        self._results.clear()
        self._host.forget_sessions()

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        return getattr(self._host, method)(*arguments, owner)
