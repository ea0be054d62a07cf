"""Fisher merging of the products B A instead of their factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fednano_flwr.product import (
    WRITINGS,
    Factors,
    adapters_of,
    residual,
    spectrum,
    state_of,
)
from fednano_flwr.strategies.fednano import FedNano
from fednano_flwr.strategies.merge import State, Update, fisher_merge, mean_factors


def product_fisher(fisher: Factors) -> Tensor:
    """A Fisher diagonal of W = B A (d, d), as far as those of its factors tell.

    F_W[i, j] ≈ f_out[i] · f_in[j], each the mean over the rank of the factors' diagonals: how much
    the loss feels output i of B, and input j of A, brought to a mean of 1 for each client.
    """
    out, into = fisher.b.double().mean(1), fisher.a.double().mean(0)
    outer = torch.outer(out, into)
    mean = outer.mean()
    return outer / mean if mean > 0 else torch.ones_like(outer)


class FisherProduct(FedNano):
    """Every entry of W weighted by how much each client's loss feels it, then cut to rank r."""

    fisher = "running"
    merges_ranks: ClassVar[bool] = True

    def merge(self, updates: Sequence[Update]) -> State:
        weights = self.weights(updates)
        clients = [adapters_of(update.theta) for update in updates]
        fishers = [adapters_of(fisher) for fisher in self.fishers(updates)]
        sent = adapters_of(self.sent)
        merged: dict[str, Factors] = {}
        for name in clients[0]:
            adapters = [client[name] for client in clients]
            like = mean_factors(adapters, weights, sent.get(name))
            product = fisher_merge(
                [factors.b.double() @ factors.a.double() for factors in adapters],
                [product_fisher(fisher[name]) for fisher in fishers],
                weights,
                self.config.fisher_floor,
            )
            found, rank = spectrum(product), like.a.shape[0]
            self.notes[f"residual {name}"] = residual(found, rank)
            merged[name] = WRITINGS[self.config.factors](found, rank, like)
        return state_of(merged)
