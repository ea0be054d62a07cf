"""A NanoAdapter put into the weights before it: the mathematics.

An adapter is linear, h' = h + s · B(A h) = M h with M = I + s B A. So wherever h is what a linear
map gives, h = W x + b, the same map with W' = M W and b' = M b gives h'; and where h is a row of a
table, so is h': E' = E Mᵀ. A factor that comes after the table (Gemma's √d) changes nothing, as M
and a number commute; neither does what moves or averages whole features. M itself is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """What one NanoAdapter adds: h' = h + s · B(A h).

    Attributes:
        down: A, (r, d).
        up: B, (d, r).
        scale: s.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def width(self) -> int:
        """d."""
        return self.down.shape[1]

    @property
    def changes_nothing(self) -> bool:
        """Whether B A = 0, as before training."""
        return not (self.scale and self.down.any() and self.up.any())


def fold_rows(rows: Tensor, adapter: LowRank) -> Tensor:
    """X + s (X Aᵀ) Bᵀ in float64: vectors (n, d), or one (d,), as the adapter would change them."""
    exact = rows.to(torch.float64)
    down, up = adapter.down.to(torch.float64), adapter.up.to(torch.float64)
    return exact + adapter.scale * (exact @ down.T) @ up.T


def fold_columns(weight: Tensor, adapter: LowRank) -> Tensor:
    """W + s B (A W) in float64, for the weight (d, k) of a linear layer whose output is adapted."""
    return fold_rows(weight.T, adapter).T.contiguous()
