"""The seam: what an LLM service tells of itself while it runs, to whoever measures it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

log = logging.getLogger(__name__)
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


class Harmless:
    """A `Watch` whose own errors cost no call; each is logged the first time."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._logged: set[str] = set()

    def answered(self, kind: str, error: Exception | None) -> None:
        with self._forgiven():
            self._watch.answered(kind, error)

    def computed(self, tokens: int) -> None:
        with self._forgiven():
            self._watch.computed(tokens)

    def moved(self, received: int, sent: int) -> None:
        with self._forgiven():
            self._watch.moved(received, sent)

    def stream(self) -> AbstractContextManager[None]:
        return self._around(self._watch.stream)

    def passing(self, requests: Collection[Waiting], tokens: int) -> AbstractContextManager[None]:
        return self._around(lambda: self._watch.passing(requests, tokens))

    def shows(self, standing: Callable[[], Mapping[str, float]]) -> None:
        self._watch.shows(standing)

    @contextmanager
    def _around(self, block: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        stack = ExitStack()
        with self._forgiven():
            stack.enter_context(block())
        try:
            yield
        finally:
            with self._forgiven():
                stack.close()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (text := f"{type(error).__name__}: {error}") not in self._logged:
                self._logged.add(text)
                log.exception("the LLM service's metrics are wrong from here on (llm.metrics)")
