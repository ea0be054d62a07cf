"""FedAvg of the products B A: FlexLoRA's mean of products (Bai et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from fednano_flwr.adapters.product import (
    FACTORIZATIONS,
    Factors,
    Spectrum,
    adapters_of,
    norm_of_sum,
    residual,
    state_of,
    sum_of_products,
)
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.merge import extrapolation, mean_factors

Adapters = Mapping[str, Factors]


class FedAvgExact(AdapterStrategy):
    """W = W_sent + η (Σ_k p_k B_k A_k − W_sent), p_k = w_k / Σ w, cut to rank r by its SVD.

    `strategy.server-rate` is η: 1 is the mean of the products itself, more goes further in the
    same direction, and 0 takes FedExP's. `strategy.factors` says how W is written as B A again:
    "plain" (the default) with A as large as the mean of the clients' and σ in B, "balanced" by √σ
    on both sides. Clients may have adapters of lower ranks than r, at a rate of 1.
    """

    merges_ranks: ClassVar[bool] = True
    without_privacy: ClassVar[str] = (
        "it merges products B A, and what is clipped and noised is the mean of their factors"
    )
    reads: ClassVar[tuple[str, ...]] = ("weight_by", "factors", "server_rate")

    def merge(self, updates: Sequence[Update]) -> State:
        weights, shares = self.weights(updates), self.shares(updates)
        clients = [adapters_of(update.theta) for update in updates]
        sent = adapters_of(self.sent)
        rate = self.config.server_rate or self._rate(clients, sent, shares)
        factorize = FACTORIZATIONS[self.config.factors]
        merged: dict[str, Factors] = {}
        for name in clients[0]:
            adapters = [client[name] for client in clients]
            like = mean_factors(adapters, weights, sent.get(name))
            mean = found = sum_of_products(adapters, shares)
            if rate != 1:
                steps = [rate * share for share in shares]
                found = sum_of_products([*adapters, sent[name]], [*steps, 1 - rate])
            rank = like.a.shape[0]
            self.notes[f"residual {name}"] = residual(found, rank)
            if all(adapter.a.shape == like.a.shape for adapter in adapters):
                off = norm_of_sum([*adapters, like], [*shares, -1])
                self.notes[f"missed by factors {name}"] = _share(off, mean)
            merged[name] = factorize(found, rank, like)
        return state_of(merged)

    def _rate(self, clients: Sequence[Adapters], sent: Adapters, shares: Sequence[float]) -> float:
        """FedExP's η on the changes of the products, all adapters together."""
        squares, square_of_mean = [0.0] * len(clients), 0.0
        for name, start in sent.items():
            adapters = [client[name] for client in clients]
            for k, adapter in enumerate(adapters):
                squares[k] += norm_of_sum([adapter, start], [1, -1]) ** 2
            square_of_mean += norm_of_sum([*adapters, start], [*shares, -1]) ** 2
        rate = extrapolation(squares, square_of_mean, shares)
        self.notes["server rate"] = rate
        return rate


def _share(off: float, mean: Spectrum) -> float:
    """`off` as a share of the mean product's norm; 0 of a zero product."""
    whole = float(mean.sigma.norm())
    return off / whole if whole > 0 else 0.0
