"""FedNano: adapters merged by their clients' Fisher diagonals (arXiv 2506.14824)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fednano_flwr.product import rebalanced
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.merge import State, Update, fisher_merge


class FedNano(AdapterStrategy):
    """Fisher merging; the diagonal comes from a pass over the client's data after training."""

    fisher: ClassVar[str] = "pass"

    def merge(self, updates: Sequence[Update]) -> State:
        weights = self.weights(updates)
        fishers = [update.fisher for update in updates]
        if any(fisher is None for fisher in fishers):
            raise ValueError(f"{type(self).__name__} needs a Fisher diagonal in every train reply")
        power = self.config.fisher_power
        merged = {
            name: fisher_merge(
                [update.theta[name] for update in updates],
                [fisher[name] ** power for fisher in fishers if fisher is not None],
                weights,
                self.config.fisher_floor,
            )
            for name in updates[0].theta
        }
        return rebalanced(merged) if self.config.factors == "balanced" else merged
