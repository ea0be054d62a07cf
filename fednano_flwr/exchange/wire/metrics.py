"""What an LLM service reports while it runs; the base class keeps nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

log = logging.getLogger(__name__)
NO_CALL = "none"
"""The kind of what cannot be parsed, or has no good token."""
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


class ServiceMetrics:
    """Called from several threads; a call may take no time."""

    def answered(self, kind: str, error: Exception | None) -> None:
        """A call has its answer: a result, or why there is none."""

    def computed(self, tokens: int) -> None:
        """The tokens of a call were computed."""

    def transferred(self, received: int, sent: int) -> None:
        """Bytes of a message and of its answer."""

    def stream(self) -> AbstractContextManager[None]:
        """A client's stream is open while the block runs."""
        return nullcontext()

    def forward_pass(
        self, requests: Collection[Waiting], tokens: int
    ) -> AbstractContextManager[None]:
        """One pass of the language model is the block; from one thread."""
        return nullcontext()

    def add_gauges(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Figures by name that can be read at any time."""


NO_METRICS = ServiceMetrics()


class Harmless(ServiceMetrics):
    """Metrics whose own errors cost no call; each is logged the first time."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        self._metrics = metrics
        self._logged: set[str] = set()

    def answered(self, kind: str, error: Exception | None) -> None:
        with self._forgiven():
            self._metrics.answered(kind, error)

    def computed(self, tokens: int) -> None:
        with self._forgiven():
            self._metrics.computed(tokens)

    def transferred(self, received: int, sent: int) -> None:
        with self._forgiven():
            self._metrics.transferred(received, sent)

    def stream(self) -> AbstractContextManager[None]:
        return self._around(self._metrics.stream)

    def forward_pass(
        self, requests: Collection[Waiting], tokens: int
    ) -> AbstractContextManager[None]:
        return self._around(lambda: self._metrics.forward_pass(requests, tokens))

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
