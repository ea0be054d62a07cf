"""FedAvg on what adapters mean: the mean of the products B A, cut back to the adapters' rank."""

from __future__ import annotations

from collections.abc import Sequence

from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.merge import State, Update, weighted_mean
from fednano_flwr.strategies.product import (
    Factors,
    adapters_of,
    as_long_as,
    balanced,
    mean_product,
    residual,
    state_of,
)


class FedAvgExact(AdapterStrategy):
    """W = Σ_k w_k B_k A_k / Σ_k w_k, cut to rank r by its SVD.

    `strategy.factors` says how W is written as B A again: "balanced" (the default) by √σ on both
    sides, "as-merged" with A as large as the mean of the clients' and σ in B.
    """

    def merge(self, updates: Sequence[Update]) -> State:
        weights = self.weights(updates)
        clients = [adapters_of(update.theta) for update in updates]
        write = as_long_as if self.config.factors == "as-merged" else balanced
        merged: dict[str, Factors] = {}
        for name in clients[0]:
            adapters = [client[name] for client in clients]
            like = Factors(
                weighted_mean([factors.a for factors in adapters], weights),
                weighted_mean([factors.b for factors in adapters], weights),
            )
            found = mean_product(adapters, weights)
            rank = like.a.shape[0]
            self.notes[f"residual {name}"] = residual(found, rank)
            merged[name] = write(found, rank, like)
        return state_of(merged)
