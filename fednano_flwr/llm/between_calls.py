"""What the host keeps between two calls of a client: bounded in number and in time."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Generic, TypeVar

from fednano_flwr.exchange.protocol import GoneError, HostBusyError

Thing = TypeVar("Thing")

LIMIT = 16
"""Things of one kind, of all owners together."""
SECONDS = 60.0
"""How long each is kept."""


@dataclass(frozen=True)
class _Entry(Generic[Thing]):
    owner: bytes
    end: float
    thing: Thing


class BetweenCalls(Generic[Thing]):
    """Things that wait for their owner's next call, each taken once, by a number hard to guess.

    Args:
        limit: how many there may be.
        seconds: how long one is kept.
        of_owner: how many of one owner; its oldest give way to its latest.

    Attributes:
        what, waits_for: the things, and what they wait for, in an error's words.
        gone: the error for one that is not here.
    """

    what = "things"
    waits_for = "their clients"
    gone: type[GoneError] = GoneError

    def __init__(self, limit: int = LIMIT, seconds: float = SECONDS, of_owner: int = 1) -> None:
        self._limit, self._seconds, self._of_owner = limit, seconds, of_owner
        self._kept: dict[int, _Entry[Thing]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._kept)

    def make_room(self, owner: bytes) -> None:
        """Forget what of the owner's one more would replace, and all whose time is over.

        Raises:
            HostBusyError: too many others are kept.
        """
        self._forget_oldest(owner, self._of_owner - 1)
        self.expire()
        if len(self._kept) >= self._limit:
            raise HostBusyError(
                f"{len(self._kept)} {self.what} wait for {self.waits_for}; the host keeps "
                f"{self._limit}"
            )

    def keep(self, owner: bytes, thing: Thing) -> int:
        """Keep one thing more of the owner's; returns its number."""
        self._forget_oldest(owner, self._of_owner - 1)
        number = secrets.randbits(63)
        self._kept[number] = _Entry(owner, time.monotonic() + self._seconds, thing)
        return number

    def take(self, owner: bytes, number: int) -> Thing:
        """The thing of this number, once.

        Raises:
            GoneError: of the kind `gone`: the owner has none of this number, or its time is over.
        """
        self.expire()
        entry = self._kept.get(number)
        if entry is None or entry.owner != owner:
            raise self.gone(f"{number} is not here any more")
        del self._kept[number]
        return entry.thing

    def expire(self) -> None:
        """Forget those whose time is over."""
        now = time.monotonic()
        self._kept = {n: entry for n, entry in self._kept.items() if entry.end >= now}

    def _forget_oldest(self, owner: bytes, left: int) -> None:
        own = [number for number, entry in self._kept.items() if entry.owner == owner]
        for number in own[: max(0, len(own) - left)]:
            del self._kept[number]
