"""FedRot-LoRA: clients' factors are turned towards one another before they are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from fednano_flwr.adapters.product import Factors, adapters_of, state_of
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.base import AdapterStrategy


class FedRotLoRA(AdapterStrategy):
    """The mean of Rᵀ A_k and of B_k R, R orthogonal (r, r)  (Zhang et al., ICML 2026, 2602.23638).

    (B_k R)(Rᵀ A_k) = B_k A_k, so that a client's factors may be turned freely. R brings one of them
    as near as it can to what was sent: A in even rounds, min ‖Rᵀ A_k − A‖, B in odd ones,
    min ‖B_k R − B‖; in round 1, where B is 0, nothing is turned. There the clients turn; here the
    server does, which knows what it sent, and no byte is added either.
    """

    reads: ClassVar[tuple[str, ...]] = ("weight_by",)

    def merge(self, updates: Sequence[Update]) -> State:
        return self.mean([replace(one, theta=self._turned(one.theta)) for one in updates])

    def _turned(self, theta: State) -> State:
        sent = adapters_of(self.sent)
        by_a = self.round % 2 == 0
        return state_of(
            {name: turned(one, sent[name], by_a) for name, one in adapters_of(theta).items()}
        )


def turned(client: Factors, sent: Factors, by_a: bool) -> Factors:
    """A client's factors in the basis in which A (or B) is nearest to that of `sent`.

    Orthogonal Procrustes (Schönemann, 1966): R = U V of the SVD U σ V of A_k Aᵀ, or of B_kᵀ B.
    """
    a, b = client.a.double(), client.b.double()
    both = a @ sent.a.double().T if by_a else b.T @ sent.b.double()
    if not both.any():
        return client
    u, _, v = torch.linalg.svd(both)
    rotation = u @ v
    return Factors(rotation.T @ a, b @ rotation)
