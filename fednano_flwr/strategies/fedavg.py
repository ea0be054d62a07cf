"""FedAvg on adapters (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fednano_flwr.adapters.product import rebalanced
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.base import AdapterStrategy


class AdapterFedAvg(AdapterStrategy):
    """The weighted mean of every parameter.

    With `strategy.factors = "balanced"` the merged adapters keep their product B A, written in
    factors of equal size.
    """

    without_privacy: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ("weight_by", "factors")

    def merge(self, updates: Sequence[Update]) -> State:
        mean = self.mean(updates)
        return rebalanced(mean) if self.config.factors == "balanced" else mean
