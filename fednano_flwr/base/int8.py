"""Block-wise int8 with outliers kept apart: one number in about a byte, of any magnitude.

A block is `BLOCK` neighbours along the last axis; it has a scale of its own, so that neither a
large row nor a large block takes resolution from another. Inside a block, embeddings of real LLMs
have channels hundreds of times larger than the rest, which a common scale would round to zero.
Such entries are outliers and travel apart in bfloat16 (as SpQR does with weights, Dettmers et al.,
2023), found entry by entry: what a row becomes does not depend on the rows around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Divides the hidden sizes of LLMs. Its scale costs 2 bytes, 3 %; of half as many normal numbers
the largest, and with it the error, is only a tenth smaller."""
THRESHOLD = 8.0
"""Less than one normal number in a thousand million is beyond it (6.4 standard deviations), and at
most 1/8 of any block: with 6 bytes an outlier, a number never takes more than 1.79 bytes (+ the
block's scale where a row is shorter than a block)."""
STEPS = 127
"""Codes on either side of zero: all that a byte has room for, but one."""
PASSES = 8
"""Each divides by 8 what one huge entry adds to the level."""
AT_ONCE = 2**18
"""Numbers that a CPU takes at once: what is computed on the way then stays in its cache."""


@dataclass(frozen=True)
class Int8:
    """A matrix of R rows and d columns in C = ⌈d / BLOCK⌉ blocks a row, K of its entries outliers.

    Attributes:
        codes: (R, d) int8 in [-steps, steps], 0 where an outlier is.
        scales: (R, C) bfloat16, > 0.
        places: (K,) int64, ascending; where the outliers are in the flattened matrix.
        outliers: (K,) bfloat16, their values.
    """

    codes: Tensor
    scales: Tensor
    places: Tensor
    outliers: Tensor

    def is_finite(self) -> bool:
        """Whether all entries, as `dequantize` would give them, are."""
        largest = self.scales.float() * 128
        return bool(largest.isfinite().all() and self.outliers.isfinite().all())


def quantize(matrix: Tensor, threshold: float = THRESHOLD, steps: int = STEPS) -> Int8:
    """Round each block to 2 · steps + 1 values between ± its largest entry that is no outlier.

    An entry x of a block is an outlier where |x| > threshold · level, and the block's level is its
    mean magnitude, not counting beyond the threshold what would only hide other outliers:

        level ← mean |x|,  then PASSES times  level ← mean min(|x|, threshold · level)

    (so that at most 1 in `threshold` entries is an outlier, by Markov's inequality). With
    s = max |x| / steps over the others, rounded to bfloat16, their code is round(x / s), and

        |x − x̂| ≤ s / 2 ≤ threshold · level / (2 · steps − 1),    outliers: |x − x̂| ≤ 2⁻⁸ |x|

    Args:
        matrix: (R, d) floating point, any device.
        threshold: infinity for no outliers.
        steps: 1 to 127; fewer make codes that take fewer bits.

    Raises:
        ValueError: an entry is not finite, or within a hundredth of float32's largest.
    """
    parts, start = [], 0
    for rows in _chunks(matrix.detach()):
        part = _quantize(rows, threshold, steps)
        parts.append((part.codes, part.scales, part.places + start, part.outliers))
        start += rows.numel()
    result = Int8(*(torch.cat(column) for column in zip(*parts, strict=True)))
    if not result.is_finite():
        raise ValueError("int8 holds finite numbers only, up to about 3.3e38")
    return result


def dequantize(quantized: Int8) -> Tensor:
    """The matrix (R, d) of `quantize` in float32, within its bounds."""
    scales, start = quantized.scales.float(), 0
    matrix = torch.empty(quantized.codes.shape, device=scales.device)
    for part in _chunks(quantized.codes):
        rows, width = part.shape
        blocks = F.pad(part, (0, -width % BLOCK)).view(rows, -(-width // BLOCK), BLOCK)
        values = blocks * scales[start : start + rows, :, None]
        matrix[start : start + rows] = values.flatten(1)[:, :width]
        start += rows
    matrix.view(-1)[quantized.places] = quantized.outliers.float()
    return matrix


def _chunks(matrix: Tensor) -> tuple[Tensor, ...]:
    """Rows a CPU should take at once; a GPU takes all."""
    if matrix.device.type != "cpu" or not matrix.numel():
        return (matrix,)
    return matrix.split(max(1, AT_ONCE // matrix.shape[1]))


def _quantize(matrix: Tensor, threshold: float, steps: int) -> Int8:
    """`quantize`, of rows that fit the cache and unchecked."""
    rows, width = matrix.shape
    count = -(-width // BLOCK)
    padded = F.pad(matrix.float(), (0, count * BLOCK - width)).contiguous()
    blocks = padded.view(rows, count, BLOCK)
    real = torch.full((count,), float(BLOCK), device=matrix.device)
    if count:
        real[-1] = width - (count - 1) * BLOCK
    magnitude = blocks.abs()
    level = magnitude.sum(dim=-1) / real
    largest = magnitude.amax(dim=-1)

    # Elsewhere nothing is cut off, so the level stays the mean and there is no outlier.
    suspect = (largest > threshold * level).nonzero(as_tuple=True)
    magnitude = magnitude[suspect]
    limit = threshold * level[suspect][:, None]
    for _ in range(PASSES):
        total = magnitude.minimum(limit).sum(dim=-1, keepdim=True)
        limit = threshold * total / real[suspect[1]][:, None]
    found = magnitude > limit
    largest[suspect] = magnitude.masked_fill(found, 0).amax(dim=-1)

    scales = (largest / steps).clamp(min=torch.finfo(torch.float32).tiny).to(torch.bfloat16)
    codes = (blocks / scales.float()[..., None]).flatten(1)
    which, entry = found.nonzero(as_tuple=True)
    row, column = suspect[0][which], suspect[1][which] * BLOCK + entry
    codes[row, column] = 0
    codes = codes.round_()[:, :width].to(torch.int8)
    outliers = padded[row, column].to(torch.bfloat16)
    return Int8(codes, scales, row * width + column, outliers)
