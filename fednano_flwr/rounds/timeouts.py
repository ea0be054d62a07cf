"""How long a client's reply is waited for: as long as it still makes steps, within a limit.

A slow client shows that it gets on by its calls to the LLM service. One that has made none for
`timeout` seconds counts as lost; none is waited for beyond `limit`, so that a client that only
looks busy cannot hold a round for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

NAMED = 5
LastSeen = Callable[[int], float | None]
"""When a node (by Flower's id) was last served, by `Patience.clock`; None where that is unknown."""


@dataclass(frozen=True)
class Patience:
    """What is waited for.

    Attributes:
        timeout: seconds without a sign of progress after which a client counts as lost.
        limit: seconds that one question may take at most.
        last_seen: the signs of progress; by default there are none.
        clock: seconds that only ever grow.
        in_turn: clients wait for one another's end, as in a simulation with more clients than
            processors: one that has not begun is silent only since the last step of any other.
    """

    timeout: float
    limit: float
    last_seen: LastSeen = lambda node: None
    clock: Callable[[], float] = time.monotonic
    in_turn: bool = False

    def silence(self, node: int, asked: float, moved: float = 0.0) -> float:
        """Seconds since a node was asked, or since it was served for what it was asked.

        Args:
            moved: when any node of those asked last made a step or replied.
        """
        begun = max(asked, moved) if self.in_turn else asked
        return self.clock() - (self._served(node, asked) or begun)

    def given_up(self, node: int, asked: float, moved: float = 0.0) -> str:
        """Why a node is waited for no longer; "" while it is. `moved` is as in `silence`."""
        if self.clock() - asked >= self.limit:
            return f"no reply within {self.limit:.0f} s (round-limit)"
        if self.silence(node, asked, moved) >= self.timeout:
            made = "no step" if not self._served(node, asked) else "no further step"
            return f"no reply, and {made} for {self.timeout:.0f} s (round-timeout)"
        return ""

    def words(self, names: Mapping[int, str], asked: float) -> str:
        """Who is waited for and when each last made a step, the most silent first.

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

    def moved(self, nodes: Iterable[int], before: float) -> float:
        """When any of these nodes was last served, or `before` where none was since."""
        return max([before, *(self.last_seen(node) or before for node in nodes)])

    def _served(self, node: int, asked: float) -> float:
        """When a node was last served for what it was asked; 0 where it was not yet."""
        last = self.last_seen(node) or asked
        return last if last > asked else 0.0
