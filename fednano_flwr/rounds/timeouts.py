"""Timeouts of replies: a client may take long while it makes progress, up to a limit.

A client's calls to the LLM service show its progress. It counts as lost after `timeout` seconds
without a call, and after `limit` seconds in any case, so that no client blocks a round for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

NAMED = 5
LastSeen = Callable[[int], float | None]
"""When a node (Flower's id) was last served, by `ReplyTimeout.clock`; None if that is unknown."""


@dataclass(frozen=True)
class ReplyTimeout:
    """When a client that owes a reply counts as lost.

    Attributes:
        timeout: seconds without progress after which a client is lost.
        limit: seconds that one message may take at most.
        last_seen: when a node last made progress; by default that is unknown.
        clock: seconds, monotonic.
        in_turn: clients take turns, as in a simulation with more clients than processors: the
            silence of one that has not begun counts from the last progress of any other.
    """

    timeout: float
    limit: float
    last_seen: LastSeen = lambda node: None
    clock: Callable[[], float] = time.monotonic
    in_turn: bool = False

    def silence(self, node: int, asked: float, moved: float = 0.0) -> float:
        """Seconds since a node was asked, or since it was last served for that.

        Args:
            moved: when any of the nodes asked last made progress or replied.
        """
        begun = max(asked, moved) if self.in_turn else asked
        return self.clock() - (self._served(node, asked) or begun)

    def lost(self, node: int, asked: float, moved: float = 0.0) -> str:
        """Why a node counts as lost; "" while it does not. `moved` is as in `silence`."""
        if self.clock() - asked >= self.limit:
            return f"no reply within {self.limit:.0f} s (round-limit)"
        if self.silence(node, asked, moved) >= self.timeout:
            made = "no step" if not self._served(node, asked) else "no further step"
            return f"no reply, and {made} for {self.timeout:.0f} s (round-timeout)"
        return ""

    def describe(self, names: Mapping[int, str], asked: float) -> str:
        """The clients that owe a reply and the time of their last step, the most silent first.

        Args:
            names: of the nodes that owe a reply.
        """
        silent = sorted(names, key=lambda node: -self.silence(node, asked))
        parts = []
        for node in silent[:NAMED]:
            when = f"last step {self.silence(node, asked):.0f} s ago"
            parts.append(f"{names[node]} ({when if self._served(node, asked) else 'no step yet'})")
        if len(silent) > NAMED:
            parts.append(f"{len(silent) - NAMED} more")
        return "waiting for " + ", ".join(parts)

    def last_progress(self, nodes: Iterable[int], before: float) -> float:
        """When any of these nodes was last served; `before` if none was since."""
        return max([before, *(self.last_seen(node) or before for node in nodes)])

    def _served(self, node: int, asked: float) -> float:
        """When a node was last served for what it was asked; 0 if it was not yet."""
        last = self.last_seen(node) or asked
        return last if last > asked else 0.0
