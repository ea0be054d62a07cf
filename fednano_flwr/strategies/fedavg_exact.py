"""FedAvg on what adapters mean: the mean of the products B A, cut back to the adapters' rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fednano_flwr.product import (
    WRITINGS,
    Factors,
    adapters_of,
    mean_product,
    residual,
    state_of,
)
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.merge import State, Update, mean_factors


class FedAvgExact(AdapterStrategy):
    """W = Σ_k w_k B_k A_k / Σ_k w_k, cut to rank r by its SVD.

    `strategy.factors` says how W is written as B A again: "balanced" (the default) by √σ on both
    sides, "as-merged" with A as large as the mean of the clients' and σ in B. Clients may have
    adapters of lower ranks than r.
    """

    merges_ranks: ClassVar[bool] = True

    def merge(self, updates: Sequence[Update]) -> State:
        weights = self.weights(updates)
        clients = [adapters_of(update.theta) for update in updates]
        sent = adapters_of(self.sent)
        write = WRITINGS[self.config.factors]
        merged: dict[str, Factors] = {}
        for name in clients[0]:
            adapters = [client[name] for client in clients]
            like = mean_factors(adapters, weights, sent.get(name))
            found = mean_product(adapters, weights)
            rank = like.a.shape[0]
            self.notes[f"residual {name}"] = residual(found, rank)
            merged[name] = write(found, rank, like)
        return state_of(merged)
