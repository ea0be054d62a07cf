"""FedNano: adapters merged by their clients' Fisher diagonals (arXiv 2506.14824)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fednano_flwr.adapters.product import rebalanced
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.merge import fisher_merge, fisher_notes, fisher_weights


class FedNano(AdapterStrategy):
    """Fisher merging; the diagonal comes from a pass over the client's data after training."""

    fisher = "pass"
    without_privacy: ClassVar[str] = (
        "Fisher values weigh the updates, so that no clip norm bounds one client's part"
    )
    reads: ClassVar[tuple[str, ...]] = (
        "weight_by",
        "factors",
        "fisher_estimate",
        "fisher_floor",
        "fisher_power",
        "fisher_scale",
    )

    def merge(self, updates: Sequence[Update]) -> State:
        config = self.config
        weights = self.weights(updates)
        fishers = self.fishers(updates)
        merged = {
            name: fisher_merge(
                [update.theta[name] for update in updates],
                [fisher[name] for fisher in fishers],
                weights,
                config.fisher_floor,
            )
            for name in updates[0].theta
        }
        return rebalanced(merged) if config.factors == "balanced" else merged

    def fishers(self, updates: Sequence[Update]) -> list[State]:
        """Each client's Fisher diagonals as they weigh.

        Raises:
            ValueError: a client has sent none.
        """
        found = [update.fisher for update in updates if update.fisher is not None]
        if len(found) < len(updates):
            raise ValueError(f"{type(self).__name__} needs a Fisher diagonal in every train reply")
        self.notes |= fisher_notes(found)
        config = self.config
        return [fisher_weights(one, config.fisher_power, config.fisher_scale) for one in found]
