"""FedEx-LoRA: the mean of the factors, and at the host what it misses of the mean product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fednano_flwr.adapters.host_map import grown
from fednano_flwr.adapters.product import Factors, adapters_of
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.base import AdapterStrategy


class FedEx(AdapterStrategy):
    """A = Σ_k p_k A_k, B = Σ_k p_k B_k, M ← M + Σ_k p_k B_k A_k − B A, p_k = w_k / Σ w.

    From FedEx-LoRA (Singhal et al., ACL 2025, arXiv 2410.09432), where the server sends the
    residual to every client, which adds it to its frozen weights. Here the host has the frozen
    embeddings, and so it has M as well: clients get A and B alone. M is kept whole, so the next
    round starts from M + B A, the mean of the clients' models to float32's rounding.
    """

    keeps_map: ClassVar[bool] = True
    without_privacy: ClassVar[str] = (
        "its map at the host is made of single clients' products B A, and only the noised mean of "
        "their factors may be seen"
    )
    reads: ClassVar[tuple[str, ...]] = ("weight_by",)

    def merge(self, updates: Sequence[Update]) -> State:
        shares = self.shares(updates)
        clients, before = [adapters_of(update.theta) for update in updates], adapters_of(self.map)
        merged = self.mean(updates)
        after: dict[str, Factors] = {}
        for name, mean in adapters_of(merged).items():
            products = [*(client[name] for client in clients), mean]
            after[name] = grown(before.get(name), products, [*shares, -1.0])
        self.keep(after)
        return merged
