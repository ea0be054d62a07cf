"""The seam: what an LLM service tells of itself while it runs, to whoever measures it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

NO_CALL = "none"
"""The kind of what cannot be told to be any call."""
SESSION = "session"
"""The kind of a stream that is refused as a whole."""


class Waiting(Protocol):
    """A request that has waited for its turn.

    Attributes:
        kind: of call, as in fednano.proto.
        asked: when it began to wait, by `time.monotonic`.
    """

    kind: str
    asked: float

    @property
    def future(self) -> Any:
        """Of its result."""


class Watch(Protocol):
    """Is told what happens, from several threads; what it does with that may take no time."""

    def answered(self, kind: str, error: Exception | None) -> None:
        """A call has its answer: a result, or why there is none."""

    def computed(self, tokens: int) -> None:
        """A call had its tokens computed."""

    def moved(self, received: int, sent: int) -> None:
        """Bytes of a message and of its answer."""

    def stream(self) -> AbstractContextManager[None]:
        """A client's stream is open while the block runs."""

    def passing(self, requests: Collection[Waiting], tokens: int) -> AbstractContextManager[None]:
        """One pass of the language model is the block; from one thread."""

    def shows(self, standing: Callable[[], Mapping[str, float]]) -> None:
        """Where figures can be asked for that are known at any time, by name."""


class Unwatched:
    """Nobody measures."""

    def answered(self, kind: str, error: Exception | None) -> None:
        pass

    def computed(self, tokens: int) -> None:
        pass

    def moved(self, received: int, sent: int) -> None:
        pass

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def passing(self, requests: Collection[Waiting], tokens: int) -> AbstractContextManager[None]:
        return nullcontext()

    def shows(self, standing: Callable[[], Mapping[str, float]]) -> None:
        pass


UNWATCHED = Unwatched()
