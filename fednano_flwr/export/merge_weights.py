"""Merge a NanoAdapter into the weights that come before it.

An adapter is linear, h' = h + s·B(A h) = M h with M = I + s·B A. Where h = W x + b, the map with
W' = M W and b' = M b gives h'. Where h is a row of a table E, E' = E Mᵀ gives h'. A factor behind
the table (Gemma's √d) commutes with M. M itself, d × d, is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fednano_flwr.adapters.product import Factors

PIECE_BYTES = 16 * 2**20
"""Of a tensor that is computed at once, in float64."""


@dataclass
class Rounding:
    """What rounding to the stored dtype loses, and what the adapters change: sums of squares."""

    lost: float = 0.0
    changed: float = 0.0

    @property
    def relative(self) -> float:
        """Norm of what is lost, relative to the norm of the change."""
        return (self.lost / self.changed) ** 0.5 if self.changed else 0.0


def adapt_rows(rows: Tensor, adapter: Factors) -> Tensor:
    """X + (X Aᵀ) Bᵀ in float64: vectors (n, d) as the adapter changes them.

    Args:
        adapter: A (r, d) and B (d, r); B holds the scale s.
    """
    exact = rows.double()
    return exact + (exact @ adapter.a.double().T) @ adapter.b.double().T


def merge(
    weight: Tensor,
    adapter: Factors,
    dtype: torch.dtype,
    outputs_first: bool = False,
    rounding: Rounding | None = None,
) -> Tensor:
    """A weight with the adapter merged into it, computed in float64 and rounded to `dtype`.

    Args:
        weight: rows (n, d) that the adapter is applied to, one such row (d,), or (d, k) with
            `outputs_first`, as a linear layer stores it.
        rounding: adds up what is changed and lost.
    """
    rows = weight.T if outputs_first else torch.atleast_2d(weight)
    result = torch.empty(rows.shape, dtype=dtype)
    step = max(1, PIECE_BYTES // (8 * rows.shape[1]))
    for old, new in zip(rows.split(step), result.split(step), strict=True):
        exact = adapt_rows(old, adapter)
        new.copy_(exact)
        if rounding:
            rounding.changed += float((exact - old).square().sum())
            rounding.lost += float((new - exact).square().sum())
    return result.T.contiguous() if outputs_first else result.reshape(weight.shape)
