"""A frozen language model that many clients ask at once: a bounded, fair queue and one worker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from fednano_flwr.exchange.errors import HostBusyError
from fednano_flwr.exchange.protocol import Feature, LLMInfo, LLMService, Room
from fednano_flwr.exchange.wire.methods import METHODS
from fednano_flwr.exchange.wire.metrics import NO_METRICS, Harmless, ServiceMetrics
from fednano_flwr.llm.fair_queue import FairQueue
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.jobs import JOBS, Request, Result, Sample, Task

log = logging.getLogger(__name__)

ACTIVE_SECONDS = 1.0
"""A client that has asked within this time is expected to ask again."""
CHECK_SECONDS = 0.5


class QueuedLLM(LLMService):
    """An `LLMService` whose calls wait for their turn in a `FairQueue`.

    Args:
        host: what serves them, in one worker thread.
        batch_tokens: most tokens in a pass that serves samples of several requests; 0: a pass
            serves one request, and results do not depend on who else asks, to the last bit.
        batch_wait: seconds that a pass may wait for active clients without a waiting request.
        max_waiting: requests that may wait; more are refused for the moment.
        owner_waiting: as many of one owner; 0 for no limit.
        metrics: of each pass, and gauges.
        at_end: called when the host has been closed.
    """

    def __init__(
        self,
        host: FrozenLLM,
        batch_tokens: int = 0,
        batch_wait: float = 0.002,
        max_waiting: int = 256,
        owner_waiting: int = 8,
        metrics: ServiceMetrics = NO_METRICS,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._host = host
        self._at_end = at_end
        self._batch_tokens, self._batch_wait = batch_tokens, batch_wait
        self._max_waiting, self._owner_waiting = max_waiting, owner_waiting
        self._queue = FairQueue(batch_tokens)
        self._asked: dict[bytes, float] = {}
        self._since = 0.0
        self._changed = threading.Condition()
        self._closed = False
        self._errors = 0
        self._logged = ""
        self._metrics = Harmless(metrics)
        metrics.add_gauges(self.gauges)
        self._worker = threading.Thread(target=self._work, name="llm", daemon=True)
        self._worker.start()

    def __enter__(self) -> QueuedLLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker after the pass that it is in; waiting requests fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()
        self._host.features.close()
        self._at_end()

    def describe(self) -> LLMInfo:
        return self._host.describe()

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        """Answer a call in its turn; one that is no job never shares a pass.

        Raises:
            HostBusyError: too many requests wait already, or the host is closing.
        """
        if method in JOBS:
            return self._ask(JOBS[method](*arguments, owner))
        answer = partial(getattr(self._host, method), *arguments, owner)
        task = Task(answer, METHODS[method].tokens(*arguments), owner, method)
        if method not in ("prefill", "decode"):
            return self._ask(task)
        with self._host.caches.awaited(owner, arguments[0]):
            return self._ask(task)

    def reserve(self, tokens: int, owner: bytes = b"") -> Room:
        """See `LLMService.reserve`; waits for nobody."""
        return self._host.reserve(tokens, owner)

    def release(self, cache: int, owner: bytes = b"") -> None:
        """See `LLMService.release`; waits for nobody."""
        self._host.release(cache, owner)

    def lacks(self, keys: Sequence[bytes], owner: bytes = b"") -> list[bytes]:
        """See `LLMService.lacks`; waits for nobody."""
        return self._host.lacks(keys, owner)

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        """See `LLMService.keep_features`; waits for nobody."""
        self._host.keep_features(features, owner)

    def forget_sessions(self) -> None:
        """See `LLMService.forget_sessions`; waits for no request, however many there are."""
        self._host.forget_sessions()

    def gauges(self) -> dict[str, float]:
        """What waits and what is kept now; does not wait for a pass to end."""
        with self._changed:
            requests, tokens = len(self._queue), self._queue.tokens
        features, caches, sessions = self._host.features, self._host.caches, self._host.sessions
        return {
            "waiting_requests": requests,
            "waiting_tokens": tokens,
            "feature_memory_bytes": features.bytes_in_memory,
            "feature_disk_bytes": features.bytes_on_disk,
            "open_graphs": len(self._host.graphs),
            "kept_caches": len(caches),
            "kept_cache_tokens": caches.tokens,
            "waiting_for_room": caches.waiting,
            "sessions": len(sessions) if sessions is not None else 0,
            "session_bytes": sessions.nbytes if sessions is not None else 0,
            "worker_errors": self._errors,
        }

    def _ask(self, job: Request[Result]) -> Result:
        """Let a request wait for its turn, and for its result."""
        with self._changed:
            if self._closed:
                raise HostBusyError("the LLM host is closing")
            if len(self._queue) >= self._max_waiting:
                raise HostBusyError(
                    f"{len(self._queue)} requests wait; the host takes {self._max_waiting}"
                )
            waiting = self._queue.waiting_of(job.owner)
            if self._owner_waiting and waiting >= self._owner_waiting:
                raise HostBusyError(f"{waiting} requests of this client wait")
            now = time.monotonic()
            if not len(self._queue):
                self._since = now
            if self._batch_tokens:
                self._asked[job.owner] = now
            self._queue.add(job)
            self._changed.notify_all()
        return job.future.result()

    def _work(self) -> None:
        try:
            while self._serve_next():
                pass
        finally:  # whatever ended it
            with self._changed:
                self._closed = True
            self._fail([], HostBusyError("the LLM host is closing"))

    def _serve_next(self) -> bool:
        """Serve a pass; whether the host is still open.

        An error in a pass is its requests' error; one in choosing a pass is that of all who wait.
        """
        requests: set[Request[Any]] = set()
        try:
            work = self._next()
            if work is None:
                return False
            if isinstance(work, Task):
                requests = {work}
                with self._metrics.forward_pass(requests, work.tokens):
                    work.run()
            else:
                requests = {sample.job for sample in work}
                with self._metrics.forward_pass(requests, sum(sample.length for sample in work)):
                    self._host.serve(work)
        except Exception as error:
            self._note(error)
            self._fail(requests, error)
        return True

    def _fail(self, requests: Collection[Request[Any]], error: Exception) -> None:
        """Answer these requests with the error, or all that wait where there are none."""
        with self._changed:
            for request in requests or self._queue.clear():
                request.fail(error)

    def _note(self, error: Exception) -> None:
        """Count an error, and log it unless it is the last one again."""
        self._errors += 1
        if (text := f"{type(error).__name__}: {error}") != self._logged:
            self._logged = text
            log.error("the LLM host's worker met an error", exc_info=error)

    def _next(self) -> list[Sample] | Task[Any] | None:
        """What to do next, once there is something; None when the host closes."""
        with self._changed:
            while not self._closed:
                if not len(self._queue):
                    self._changed.wait(CHECK_SECONDS)
                    try:
                        self._host.expire()
                    except Exception as error:
                        self._note(error)  # nobody asked for this
                elif (seconds := self._seconds_to_wait()) > 0:
                    self._changed.wait(seconds)
                elif (work := self._queue.next()) is not None:
                    return work
            return None

    def _seconds_to_wait(self) -> float:
        """Seconds that the next pass may still wait for active clients."""
        if not self._batch_tokens or self._queue.fills_a_pass():
            return 0.0
        now = time.monotonic()
        self._asked = {o: t for o, t in self._asked.items() if now - t < ACTIVE_SECONDS}
        if self._asked.keys() <= self._queue.owners:
            return 0.0
        return self._since + self._batch_wait - now
