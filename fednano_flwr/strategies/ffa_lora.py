"""FFA-LoRA: A stays as it was drawn, and B alone is trained, sent and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fednano_flwr.adapters.product import trained_part
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.base import AdapterStrategy


class FFALoRA(AdapterStrategy):
    """B = Σ_k p_k B_k, p_k = w_k / Σ w, with one A for all (Sun et al., ICLR 2024).

    So (Σ p_k B_k) A = Σ p_k B_k A: the mean of the factors is that of the products. Clients send
    half as much. Noise for differential privacy is added to B alone, so that no product of two
    noises comes of it.
    """

    without_privacy: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ("weight_by",)

    def factor(self, server_round: int) -> str:
        return "B"

    def merge(self, updates: Sequence[Update]) -> State:
        return {**self.sent, **trained_part(self.mean(updates), self.factor(self.round))}
