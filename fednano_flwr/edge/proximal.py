"""The proximal term of FedProx."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def proximal_term(parameters: Iterable[Tensor], anchors: Iterable[Tensor], mu: float) -> Tensor:
    """(μ / 2) Σ ‖θ − θ_round‖², its gradient μ (θ − θ_round)     (Li et al., MLSys 2020, eq. 2)

    Args:
        parameters: θ, differentiable.
        anchors: θ_round, where the round's training started; shapes as in `parameters`.
        mu: μ > 0.
    """
    distances = [(p - a).square().sum() for p, a in zip(parameters, anchors, strict=True)]
    return mu / 2 * sum(distances[1:], distances[0])
