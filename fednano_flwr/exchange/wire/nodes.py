"""What a service keeps of each node: how much it takes, and when it was last served.

A token says which node calls. A request over a limit is answered with "busy" before it is decoded,
and an honest client asks again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fednano_flwr.exchange.errors import HostBusyError

BURST_SECONDS = 5.0
"""A node that was silent may make the requests of so many seconds at once."""
SESSIONS_OF_NODE = 8
"""A client needs two; connections that broke off may hold others for a while."""


@dataclass(frozen=True)
class NodeLimits:
    """Limits of one node; 0 is none.

    Attributes:
        requests_per_second: calls of all its sessions.
        sessions: streams open at once.
    """

    requests_per_second: float = 0.0
    sessions: int = SESSIONS_OF_NODE


class Meter:
    """Counts what each node takes; for many threads at once.

    Args:
        clock: seconds.
    """

    def __init__(self, limits: NodeLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._buckets: dict[bytes, tuple[float, float]] = {}  # requests left, and when
        self._sessions: Counter[bytes] = Counter()

    def request(self, owner: bytes) -> None:
        """Count one request.

        Raises:
            HostBusyError: there were too many within the last seconds; this one does not count.
        """
        rate = self._limits.requests_per_second
        if not rate:
            return
        most = max(1.0, rate * BURST_SECONDS)
        with self._lock:
            now = self._clock()
            left, since = self._buckets.get(owner, (most, now))
            left = min(most, left + (now - since) * rate)
            self._buckets[owner] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise HostBusyError(
                f"this node makes more than {rate:g} requests a second "
                "(llm.node-requests-per-second)"
            )

    @contextmanager
    def session(self, owner: bytes) -> Iterator[None]:
        """Count a stream while the block runs.

        Raises:
            HostBusyError: the node has too many open.
        """
        most = self._limits.sessions
        with self._lock:
            if most and self._sessions[owner] >= most:
                raise HostBusyError(f"this node has {most} sessions open")
            self._sessions[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._sessions[owner] -= 1
                if not self._sessions[owner]:
                    del self._sessions[owner]


class Activity:
    """Per-node time of the last served call, used to detect stalled clients; for many threads.

    Args:
        clock: seconds that only ever grow, as `time.monotonic`'s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[bytes, float] = {}
        self._steps = 0
        self._lock = threading.Lock()

    def served(self, owner: bytes, computed: bool = False) -> None:
        """Note that a call of this owner (`auth.owner`) was served just now.

        Args:
            computed: by the language model.
        """
        with self._lock:
            self._last[owner] = self._clock()
            self._steps += computed

    def steps(self) -> int:
        """How many calls the language model has computed so far, of all owners together."""
        with self._lock:
            return self._steps

    def last_seen(self, owner: bytes) -> float | None:
        """When an owner was last served, by the clock; None where it never was."""
        with self._lock:
            return self._last.get(owner)
