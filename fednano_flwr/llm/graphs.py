"""Graphs between the two halves of a step whose labels stay with the client."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from torch import Tensor

from fednano_flwr.exchange.protocol import GraphGoneError, HostBusyError
from fednano_flwr.llm.embedding import Embedded


@dataclass(frozen=True)
class Graph:
    """A forward pass that waits for the gradient of its logits.

    Attributes:
        embedded: the batch.
        rows: (N, d) its rows as the leaf of the graph.
        logits: (P, vocabulary).
    """

    embedded: Embedded
    rows: Tensor
    logits: Tensor


class Graphs:
    """Open graphs, bounded in number and time; an owner has one, the latest.

    Args:
        limit: how many may be open.
        seconds: how long one is kept.
    """

    def __init__(self, limit: int = 16, seconds: float = 60.0) -> None:
        self._limit, self._seconds = limit, seconds
        self._open: dict[bytes, tuple[int, float, Graph]] = {}
        self._numbers = itertools.count(time.time_ns())  # a restarted host repeats none

    def __len__(self) -> int:
        return len(self._open)

    def make_room(self, owner: bytes) -> None:
        """Forget the owner's graph, if any, and those whose time is over.

        Raises:
            HostBusyError: too many others are open.
        """
        self._open.pop(owner, None)
        self.expire()
        if len(self._open) >= self._limit:
            raise HostBusyError(
                f"{len(self._open)} graphs wait for their clients' gradients (llm.max-open-graphs)"
            )

    def keep(self, owner: bytes, graph: Graph) -> int:
        """Keep the owner's graph; returns its number."""
        number = next(self._numbers)
        self._open[owner] = (number, time.monotonic() + self._seconds, graph)
        return number

    def take(self, owner: bytes, number: int) -> Graph:
        """The graph of this number, once.

        Raises:
            GraphGoneError: it is not the owner's latest, or its time is over.
        """
        self.expire()
        if owner not in self._open or self._open[owner][0] != number:
            raise GraphGoneError(f"graph {number} is not here any more")
        return self._open.pop(owner)[2]

    def expire(self) -> None:
        """Forget graphs whose time is over."""
        now = time.monotonic()
        for owner in [owner for owner, (_, end, _) in self._open.items() if end < now]:
            del self._open[owner]
