"""How long a client's reply is waited for: as long as it still makes steps, within a limit.

A slow client shows that it gets on by its calls to the LLM service. One that has made none for
`timeout` seconds counts as lost; none is waited for beyond `limit`, so that a client that only
looks busy cannot hold a round for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
    """

    timeout: float
    limit: float
    last_seen: LastSeen = lambda node: None
    clock: Callable[[], float] = time.monotonic

    def silence(self, node: int, asked: float) -> float:
        """Seconds since a node was asked, or since it was served for what it was asked."""
        return self.clock() - max(asked, self.last_seen(node) or asked)

    def given_up(self, node: int, asked: float) -> str:
        """Why a node is waited for no longer; "" while it is."""
        if self.clock() - asked >= self.limit:
            return f"no reply within {self.limit:.0f} s (round-limit)"
        if self.silence(node, asked) >= self.timeout:
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

    def _served(self, node: int, asked: float) -> bool:
        return (self.last_seen(node) or asked) > asked
