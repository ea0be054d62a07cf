"""Which replica answers which client."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

REMEMBERED_OWNERS = 10_000


class Place(Protocol):
    """A replica that is up, as far as this matters here."""

    @property
    def number(self) -> int: ...

    @property
    def busy(self) -> int:
        """Calls in flight."""
        ...


Placed = TypeVar("Placed", bound=Place)


class Homes(Generic[Placed]):
    """The replica of each owner, where its features are kept.

    An owner stays, unless its replica is lost or it is more evenly spread elsewhere. Owners are
    counted, not calls in flight: a client between two calls comes back, and its features are where
    it was. Those silent for `idle_seconds` count for nothing, so that clients that have left do
    not fill a replica; they keep their home, should they come back to it. Moving costs sending
    features again.

    Not safe for several threads: the caller holds a lock.
    """

    def __init__(self, idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_seconds, self._clock = idle_seconds, clock
        self._homes: OrderedDict[bytes, tuple[Placed, float]] = OrderedDict()  # and last call

    def of(self, owner: bytes, up: Sequence[Placed], stay: bool = False) -> Placed:
        """The owner's replica, one of `up` (not empty), for a call that begins now.

        Args:
            stay: for the second half of a step, which only the first half's replica can do.
        """
        now = self._clock()
        others = Counter(
            place.number
            for name, (place, last) in self._homes.items()
            if name != owner and now - last < self._idle_seconds
        )
        home = min(up, key=lambda place: (others[place.number], place.busy, place.number))
        if owner in self._homes:
            before, _ = self._homes[owner]
            if before in up and (stay or others[before.number] <= others[home.number]):
                home = before
        self._homes[owner] = home, now
        self._homes.move_to_end(owner)
        if len(self._homes) > REMEMBERED_OWNERS:
            self._homes.popitem(last=False)
        return home
