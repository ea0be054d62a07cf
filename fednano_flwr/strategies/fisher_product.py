"""Fisher merging of the products B A instead of their factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fednano_flwr.adapters.product import (
    FACTORIZATIONS,
    Factors,
    adapters_of,
    residual,
    spectrum,
    state_of,
)
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.fednano import FedNano
from fednano_flwr.strategies.merge import mean_by_precision, mean_factors


def product_fisher(fisher: Factors) -> tuple[Tensor, Tensor]:
    """A Fisher diagonal of W = B A (d', d), as far as its factors' tell: f_out (d',), f_in (d,).

    F_W[i, j] ≈ f_out[i] · f_in[j], each the mean over the rank of the factors' diagonals, scaled
    to a mean of 1 for each client. Ones if one of them is all zero.
    """
    out, into = fisher.b.double().mean(1), fisher.a.double().mean(0)
    if not (out.any() and into.any()):
        return torch.ones_like(out), torch.ones_like(into)
    return out / out.mean(), into / into.mean()


def merged_product(
    adapters: Sequence[Factors], fishers: Sequence[Factors], weights: Sequence[float], floor: float
) -> Tensor:
    """W (d', d) in float64: the mean of the products B_k A_k, weighted as by `fisher_merge`.

    Args:
        adapters: one a client; ranks may differ.
        fishers: Fisher diagonals of their factors. Those of the products have a mean of 1, of which
            `floor` is a share.
        weights, floor: as in `fisher_merge`.
    """
    total = sum(weights)
    return mean_by_precision(
        (pair.b.double() @ pair.a.double(), (torch.outer(*product_fisher(fisher)) + floor) * share)
        for pair, fisher, share in zip(
            adapters, fishers, [weight / total for weight in weights], strict=True
        )
    )


class FisherProduct(FedNano):
    """Each entry of W weighted by its Fisher information at each client, then cut to rank r."""

    fisher = "running"
    merges_ranks: ClassVar[bool] = True
    # No scale: `product_fisher` brings every client's to a mean of 1.
    reads: ClassVar[tuple[str, ...]] = tuple(k for k in FedNano.reads if k != "fisher_scale")

    def merge(self, updates: Sequence[Update]) -> State:
        weights = self.weights(updates)
        clients = [adapters_of(update.theta) for update in updates]
        fishers = [adapters_of(fisher) for fisher in self.fishers(updates)]
        sent = adapters_of(self.sent)
        merged: dict[str, Factors] = {}
        for name in clients[0]:
            adapters = [client[name] for client in clients]
            like = mean_factors(adapters, weights, sent.get(name))
            of_factors = [fisher[name] for fisher in fishers]
            product = merged_product(adapters, of_factors, weights, self.config.fisher_floor)
            found, rank = spectrum(product), like.a.shape[0]
            self.notes[f"residual {name}"] = residual(found, rank)
            merged[name] = FACTORIZATIONS[self.config.factors](found, rank, like)
        return state_of(merged)
