"""Merging as mathematics: tensors in, tensors out, nothing of Flower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fednano_flwr.adapters.product import Factors
from fednano_flwr.adapters.update import State

STILL = 1e-6
"""A mean change shorter than this share of the clients' own is none."""


def weighted_mean(thetas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """merged = Σ_k w_k θ_k / Σ_k w_k     (FedAvg; McMahan et al., AISTATS 2017)

    Args:
        thetas: one tensor a client, all of one shape.
        weights: one positive number a client.
    """
    total = sum(weights)
    merged = torch.zeros_like(thetas[0], dtype=torch.float64)
    for theta, weight in zip(thetas, weights, strict=True):
        merged += theta.double() * (weight / total)
    return merged.to(thetas[0].dtype)


def mean_factors(
    adapters: Sequence[Factors], weights: Sequence[float], sent: Factors | None
) -> Factors:
    """The mean of the clients' factors, or the `sent` ones where a client's rank is lower.

    Factors of different ranks have no mean.
    """
    if sent is not None and any(factors.a.shape != sent.a.shape for factors in adapters):
        return sent
    return Factors(
        weighted_mean([factors.a for factors in adapters], weights),
        weighted_mean([factors.b for factors in adapters], weights),
    )


def fisher_merge(
    thetas: Sequence[Tensor], fishers: Sequence[Tensor], weights: Sequence[float], floor: float
) -> Tensor:
    """Average client parameters, each coordinate weighted by how sure its client is of it.

    merged = Σ_k w_k (F_k + ε) θ_k / Σ_k w_k (F_k + ε)     (Matena & Raffel, NeurIPS 2022)
    ε = floor · Σ_k w_k mean(F_k) / Σ_k w_k

    So a scale that all Fisher values have in common changes nothing.

    Args:
        thetas: one tensor a client, all of one shape.
        fishers: diagonal Fisher information, shapes as in `thetas`, ≥ 0. Zero throughout, they
            give the weighted mean.
        weights: one positive number a client.
        floor: > 0, a share of the mean Fisher value; added to every F_k, so that a coordinate no
            client has seen becomes the weighted mean.

    Raises:
        ValueError: a Fisher value is negative, infinite or not a number.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    for fisher in fishers:
        if not torch.isfinite(fisher).all() or (fisher < 0).any():
            raise ValueError("a Fisher diagonal has a negative, infinite or NaN value")
    means = [float(fisher.double().mean()) for fisher in fishers]
    mean = sum(share * one for share, one in zip(shares, means, strict=True)) or 1.0
    merged = mean_by_precision(
        (theta.double(), (fisher.double() / mean + floor) * share)
        for theta, fisher, share in zip(thetas, fishers, shares, strict=True)
    )
    return merged.to(thetas[0].dtype)


def mean_by_precision(clients: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ_k P_k θ_k / Σ_k P_k, added up client by client, in their order.

    Args:
        clients: θ_k and P_k of each, all of one shape, in float64; P_k ≥ 0, their sum above 0.
    """
    weighted = precision = torch.zeros((), dtype=torch.float64)
    for theta, certainty in clients:
        weighted, precision = weighted + certainty * theta, precision + certainty
    return weighted / precision


def extrapolation(
    squares: Sequence[float], square_of_mean: float, shares: Sequence[float]
) -> float:
    """How far to go along the clients' mean change: η = max(1, Σ_k p_k ‖Δ_k‖² / 2‖Σ_k p_k Δ_k‖²).

    Changes that point apart make a short mean of long steps, and a longer step is safe (FedExP,
    Jhunjhunwala et al., ICLR 2023, there with equal shares). Two bounds are this project's. A mean
    shorter than STILL of the clients' root mean square is what rounding leaves of changes that
    cancel: it has no direction, and η is 1. And η is at most the number of clients K: equal changes
    at right angles give K / 2, so that more than K comes of changes that undo each other alone.

    Args:
        squares: ‖Δ_k‖² of each client.
        square_of_mean: ‖Σ_k p_k Δ_k‖².
        shares: p_k, of sum 1.
    """
    mean = sum(share * square for share, square in zip(shares, squares, strict=True))
    if square_of_mean <= STILL**2 * mean:
        return 1.0
    return min(max(1.0, mean / (2 * square_of_mean)), float(len(squares)))


def fisher_weights(fisher: Mapping[str, Tensor], power: float, scale: str) -> State:
    """One client's Fisher diagonals as they weigh in a merge: (F / mean)^power.

    In float64; those that nothing is done to are not copied.

    Args:
        power: 1 is the diagonal itself, below 1 evens it out.
        scale: which mean: "as-sent" (none, F^power), "client" (of all the client's values) or
            "tensor" (of each parameter's). A mean of zero divides nothing.
    """
    if scale == "as-sent" and power == 1:
        return dict(fisher)
    values = {name: value.double() for name, value in fisher.items()}
    if scale == "client":
        mean = torch.cat([value.flatten() for value in values.values()]).mean()
        values = {name: value / mean if mean > 0 else value for name, value in values.items()}
    elif scale == "tensor":
        values = {
            name: value / value.mean() if value.mean() > 0 else value
            for name, value in values.items()
        }
    return {name: value**power for name, value in values.items()}


def fisher_notes(fishers: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """What clients' Fisher diagonals look like, for people who read metrics.jsonl.

    Returns:
        "fisher NAME": the mean over clients of each parameter's mean; "fisher scale": the largest
        client's mean over the smallest's, left out where one client's is zero throughout.
    """
    means = {
        name: [float(fisher[name].double().mean()) for fisher in fishers] for name in fishers[0]
    }
    notes = {f"fisher {name}": sum(values) / len(values) for name, values in means.items()}
    whole = [sum(values) for values in zip(*means.values(), strict=True)]
    if min(whole) > 0:
        notes["fisher scale"] = max(whole) / min(whole)
    return notes
