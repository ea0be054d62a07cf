"""Graphs that the host keeps between the two halves of a step whose labels stay with the client.

A number that is hard to guess names each. They are bounded in number and in time, and any may be
gone: then the client begins its step again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fednano_flwr.exchange.at_host import Turn
from fednano_flwr.exchange.errors import GraphGoneError, HostBusyError
from fednano_flwr.exchange.protocol import Embedded

LIMIT = 16
"""Graphs of all owners together."""
SECONDS = 60.0
"""How long each is kept."""


@dataclass(frozen=True)
class Graph:
    """A forward pass that waits for the gradient of its logits.

    Attributes:
        embedded: the batch.
        rows: (N, d) its rows as the leaf of the graph.
        logits: (P, vocabulary).
        turn: of the session that the pass is a step of.
        trained: parameters whose gradient the session needs.
    """

    embedded: Embedded
    rows: Tensor
    logits: Tensor
    turn: Turn | None = None
    trained: Sequence[Tensor] = ()


@dataclass(frozen=True)
class _Entry:
    owner: bytes
    end: float
    graph: Graph


class Graphs:
    """Graphs that wait for their owner's next call: one an owner, each taken once.

    Args:
        limit: how many there may be.
        seconds: how long one is kept.
    """

    def __init__(self, limit: int = LIMIT, seconds: float = SECONDS) -> None:
        self._limit, self._seconds = limit, seconds
        self._kept: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def make_room(self, owner: bytes) -> None:
        """Forget the owner's graph, and all whose time is over.

        Raises:
            HostBusyError: too many others are kept.
        """
        self._forget(owner)
        self.expire()
        if len(self._kept) >= self._limit:
            raise HostBusyError(
                f"{len(self._kept)} graphs wait for their clients' next call; the host keeps "
                f"{self._limit}"
            )

    def keep(self, owner: bytes, graph: Graph) -> int:
        """Keep the owner's latest graph; returns its number."""
        self._forget(owner)
        number = secrets.randbits(63)
        self._kept[number] = _Entry(owner, time.monotonic() + self._seconds, graph)
        return number

    def take(self, owner: bytes, number: int) -> Graph:
        """The graph of this number, once.

        Raises:
            GraphGoneError: the owner has none of this number, or its time is over.
        """
        self.expire()
        entry = self._kept.get(number)
        if entry is None or entry.owner != owner:
            raise GraphGoneError(f"{number} is not here any more")
        del self._kept[number]
        return entry.graph

    def expire(self) -> None:
        """Forget those whose time is over."""
        now = time.monotonic()
        self._kept = {n: entry for n, entry in self._kept.items() if entry.end >= now}

    def _forget(self, owner: bytes) -> None:
        self._kept = {n: entry for n, entry in self._kept.items() if entry.owner != owner}
