"""The part of a merged model that is no client's to hold: one more pair of factors a site.

As a state it has the adapters' names and their scale s: h' = h + s·(P Q + B A) h, with Q (R, d) in
the place of A and P (d, R) in the place of B. R is of each site its own, and 0 where M = P Q is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fednano_flwr.adapters.product import DOWN, UNUSED, Factors, adapters_of, sum_of_products
from fednano_flwr.adapters.update import State
from fednano_flwr.config import SITES


def by_site(state: Mapping[str, Tensor]) -> dict[str, Factors]:
    """The adapters of a state by their site."""
    found = adapters_of(state)
    return {site: pair for site in SITES if (pair := found.get(f"base_model.model.{site}_adapter"))}


def grown(before: Factors | None, products: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """M + Σ_k w_k B_k A_k in as few directions as it has, by its SVD: at most d.

    Exact to float64, but for directions whose singular value is below `UNUSED` of the largest.

    Args:
        before: M; None where it is 0.
        products: ranks may differ.
        weights: any numbers.
    """
    terms, ones = ([], []) if before is None else ([before], [1.0])
    found = sum_of_products([*terms, *products], [*ones, *weights])
    used = int((found.sigma > UNUSED * found.sigma[0]).sum())
    return Factors(found.v[:used], found.u[:, :used] * found.sigma[:used])


def joined(theta: State, map: State) -> State:
    """One adapter that does what an adapter and a map do together: their factors side by side.

    All sites get the rank of the largest, as PEFT wants it; zeros fill the others.
    """
    if not map:
        return theta
    axes = {name: 0 if name.endswith(DOWN) else 1 for name in theta}
    widest = max(map[name].shape[axis] for name, axis in axes.items())
    whole = {}
    for name, axis in axes.items():
        parts = [theta[name], map[name]]
        shape = list(map[name].shape)
        shape[axis] = widest - shape[axis]
        whole[name] = torch.cat([*parts, map[name].new_zeros(shape)], axis)
    return whole


def rank_of(state: State) -> int:
    """The largest rank of a state's adapters; 1 where it has none."""
    return max((len(value) for name, value in state.items() if name.endswith(DOWN)), default=1)
