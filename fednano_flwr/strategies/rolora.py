"""RoLoRA: rounds in which B alone and A alone are trained, in turns."""

from __future__ import annotations

from fednano_flwr.strategies.ffa_lora import FFALoRA


class RoLoRA(FFALoRA):
    """FFA-LoRA with B trained in rounds 1, 3, …, A in rounds 2, 4, …  (Chen et al., NeurIPS 2025).

    In a round one factor is the same at all clients, so the mean of the other gives the mean of
    the products B A. B comes first, because A has no gradient while B is 0.
    """

    def factor(self, server_round: int) -> str:
        return "B" if server_round % 2 else "A"
