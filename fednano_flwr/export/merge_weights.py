"""Merge a NanoAdapter into the weights that come before it, and a LoRA into its layer's.

A NanoAdapter is linear, h' = h + s·B(A h) = M h with M = I + s·B A. Where h = W x + b, the map with
W' = M W and b' = M b gives h'. Where h is a row of a table E, E' = E Mᵀ gives h'. A factor behind
the table (Gemma's √d) commutes with M. M itself, d × d, is never formed.

A LoRA changes a layer's own weight, W' = W + s·B A, and leaves its bias.
"""

from __future__ import annotations

from collections.abc import Callable
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
    result = _stored(rows, lambda piece: adapt_rows(rows[piece], adapter), dtype, rounding)
    return result.T.contiguous() if outputs_first else result.reshape(weight.shape)


def merge_lora(
    weight: Tensor, lora: Factors, dtype: torch.dtype, rounding: Rounding | None = None
) -> Tensor:
    """W + B A, computed in float64 and rounded to `dtype`.

    Args:
        weight: W (o, i) of a linear layer.
        lora: A (r, i) and B (o, r); B holds the scale s.
        rounding: adds up what is changed and lost.
    """
    a, b = lora.a.double(), lora.b.double()
    return _stored(weight, lambda piece: weight[piece].double() + b[piece] @ a, dtype, rounding)


def _stored(
    rows: Tensor, exact: Callable[[slice], Tensor], dtype: torch.dtype, rounding: Rounding | None
) -> Tensor:
    """New rows (n, d) in the place of others, rounded to `dtype`.

    Args:
        exact: gives some of the new ones in float64.
    """
    result = torch.empty(rows.shape, dtype=dtype)
    step = max(1, PIECE_BYTES // (8 * rows.shape[1]))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        new = exact(piece)
        result[piece] = new
        if rounding:
            rounding.changed += float((new - rows[piece]).square().sum())
            rounding.lost += float((result[piece] - new).square().sum())
    return result
