"""How alike two pictures are: structural similarity and peak signal-to-noise ratio."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE, SIGMA = 11, 1.5
"""Pixels of the Gaussian window's side, and its standard deviation."""
C1, C2 = 0.01**2, 0.03**2


def ssim(ours: Tensor, theirs: Tensor) -> Tensor:
    """Structural similarity (N,) of pictures (N, C, H, W) in [0, 1], at least 11 pixels a side.

    The mean over channels and over all windows inside the picture of

        (2 μ_x μ_y + C1) (2 σ_xy + C2) / ((μ_x² + μ_y² + C1) (σ_x² + σ_y² + C2))

    with moments weighted by a Gaussian: Wang, Bovik, Sheikh and Simoncelli, "Image quality
    assessment: from error visibility to structural similarity", 2004, eqs. 13 to 16.
    """
    steps = torch.arange(SIZE) - SIZE // 2
    line = torch.exp(-(steps**2) / (2 * SIGMA**2)).to(ours)
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(planes: Tensor) -> Tensor:
        return F.conv2d(planes.flatten(0, 1)[:, None], window[None, None]).view(*ours.shape[:2], -1)

    x, y = mean(ours), mean(theirs)
    xx, yy, xy = mean(ours**2) - x**2, mean(theirs**2) - y**2, mean(ours * theirs) - x * y
    alike = (2 * x * y + C1) * (2 * xy + C2) / ((x**2 + y**2 + C1) * (xx + yy + C2))
    return alike.mean((1, 2))


def psnr(ours: Tensor, theirs: Tensor) -> Tensor:
    """−10 log₁₀ of the mean squared error (N,), in dB, of pictures (N, C, H, W) in [0, 1]."""
    return -10 * torch.log10((ours - theirs).square().mean((1, 2, 3)))


def recognized(ours: Tensor, originals: Tensor) -> Tensor:
    """(N,) bool: is a picture's own original the nearest by squared error, of all originals?"""
    distances = torch.cdist(ours.flatten(1), originals.flatten(1))
    return distances.argmin(1) == torch.arange(len(ours))
