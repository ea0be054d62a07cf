"""An inverter: ridge regression with radial basis functions from a block's features to pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-10, 1e-8, 1e-6)
"""λ, a share of the mean diagonal of ΦᵀΦ."""
ROWS = 4096
"""Blocks at once, which bounds memory."""


@dataclass(frozen=True)
class Inverter:
    """ŷ = Φ(x) W with Φ(x) = [1, x, exp(−‖x − a_i‖² / 2γ) for the anchors a_i], clipped to [0, 1].

    x are a block's features, each of unit variance, and which block of the picture it is (one-hot);
    y are its pixels; W = (ΦᵀΦ + λI)⁻¹ Φᵀy over training blocks, some of which are the anchors
    (subset of regressors: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 8.3.1).

    Attributes:
        mean, scale: (w,) float32, of the training features.
        anchors: (m, w + G²) float32.
        gamma: γ, the mean squared distance between anchors.
        weights: (1 + w + G² + m, p) float32, p = 3 · pixels of a block.
    """

    mean: Tensor
    scale: Tensor
    anchors: Tensor
    gamma: float
    weights: Tensor

    def __call__(self, vectors: Tensor, side: int) -> Tensor:
        """Pictures (N, 3, side, side) in [0, 1] of what was kept of them, (N, G, G, w)."""
        rows = torch.cat([phi @ self.weights for phi in self.expanded(vectors)])
        return assembled(rows, vectors.shape[1], side).clamp(0, 1)

    def expanded(self, vectors: Tensor) -> Iterator[Tensor]:
        """Φ of every block, some rows (≤ ROWS, M) at a time."""
        for x in self.inputs(vectors).split(ROWS):
            near = torch.exp(-(torch.cdist(x, self.anchors) ** 2) / (2 * self.gamma))
            yield torch.cat([torch.ones(len(x), 1), x, near], 1)

    def inputs(self, vectors: Tensor) -> Tensor:
        """x, (N · G², w + G²)."""
        x = (vectors.flatten(0, 2) - self.mean) / self.scale
        return torch.cat([x, torch.eye(vectors.shape[1] ** 2).repeat(len(vectors), 1)], 1)


def cut(pictures: Tensor, blocks: int, pixels: int) -> Tensor:
    """Pictures (N, 3, S, S) as (N · blocks², 3 · pixels²), zeros beyond their edges."""
    more = blocks * pixels - pictures.shape[-1]
    columns = F.unfold(F.pad(pictures, (0, more, 0, more)), pixels, stride=pixels)
    return columns.transpose(1, 2).flatten(0, 1)


def assembled(rows: Tensor, blocks: int, side: int) -> Tensor:
    """The inverse of `cut`: pictures (N, 3, side, side)."""
    pixels = round((rows.shape[1] / 3) ** 0.5)
    columns = rows.unflatten(0, (-1, blocks**2)).transpose(1, 2)
    return F.fold(columns, blocks * pixels, pixels, stride=pixels)[..., :side, :side]


def fitted(
    vectors: Tensor, pictures: Tensor, pixels: int, anchors: int, seed: int
) -> Iterator[tuple[float, Inverter]]:
    """An inverter for each of PENALTIES.

    Args:
        vectors: (N, G, G, w) float32, what was kept of the training pictures.
        pictures: (N, 3, S, S) float32 in [0, 1].
        pixels: of a block's side.
        anchors: how many blocks are drawn as anchors.
    """
    flat, none = vectors.flatten(0, 2), torch.empty(0)
    start = Inverter(flat.mean(0), flat.std(0).clamp(min=1e-6), none, 1.0, none)
    inputs = start.inputs(vectors)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    points = inputs[order[:anchors]]
    gamma = float((torch.cdist(points, points) ** 2).mean())
    start = replace(start, anchors=points, gamma=gamma)
    size = 1 + points.shape[1] + len(points)
    gram = torch.zeros(size, size, dtype=torch.float64)
    right = torch.zeros(size, 3 * pixels**2, dtype=torch.float64)
    targets = cut(pictures, vectors.shape[1], pixels).split(ROWS)
    for phi, y in zip(start.expanded(vectors), targets, strict=True):
        precise = phi.double()
        gram += precise.T @ precise
        right += phi.T @ y
    for penalty in PENALTIES:
        ridge = penalty * gram.diagonal().mean() * torch.eye(size)
        weights = torch.cholesky_solve(right, torch.linalg.cholesky(gram + ridge)).float()
        yield penalty, replace(start, weights=weights)
