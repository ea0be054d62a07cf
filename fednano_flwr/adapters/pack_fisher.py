"""Fisher diagonals in 4 bits a number, spaced evenly in their logarithm.

Fisher values are weights: what counts is their ratio between clients, over many powers of ten. So
the error is bounded relative to the value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano_flwr.adapters.packing import (
    Shapes,
    State,
    as_bytes,
    check_size,
    count,
    flatten,
    from_bytes,
    pack_nibbles,
    unflatten,
    unpack_nibbles,
)
from fednano_flwr.base.int8 import BLOCK

CODES = 15
"""Above zero."""
RANGE = 24
"""Powers of two between a block's largest value and the smallest that is told apart."""
UNIT = 128
"""A block's ends are kept as whole 128ths of a power of two, which int16 holds for all float32."""
LARGEST = torch.finfo(torch.float32).max


def pack_fisher(fisher: State) -> Tensor:
    """Fisher diagonals as uint8, one row.

    Raises:
        ValueError: a number is negative, infinite or NaN.
    """
    return encode(flatten(fisher))


def unpack_fisher(data: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Fisher diagonals of these shapes, within the bound of `encode`.

    Raises:
        ValueError: `data` is not what a client writes.
    """
    return unflatten(decode(data, count(shapes)), shapes)


def encode(vector: Tensor) -> Tensor:
    """Code 0 is zero; 1 to 15 go evenly, in the logarithm, from a block's low to its high.

    high is the block's largest value and low its smallest above zero, but at least 2⁻²⁴ high, both
    rounded outwards to 128ths of a power of two. With K = 15 codes,

        |log2 x̂ − log2 x| ≤ (log2 high − log2 low) / (2 (K − 1)) ≤ 24 / (2 (K − 1))

    so x̂ is within a factor of 1.82 of x, whatever the values, and nearer in the smaller range that
    a block commonly has. x below low becomes low = 2⁻²⁴ high, which is at most 0.6 % above 2⁻²⁴ of
    the block's largest.

    Args:
        vector: (n,) ≥ 0, floating point.

    Returns:
        uint8, one row: n codes (two a byte), then 4 bytes for each of ⌈n / 64⌉ blocks.

    Raises:
        ValueError: a number is negative, infinite or NaN.
    """
    _check(vector)
    blocks = F.pad(vector.double(), (0, -vector.numel() % BLOCK)).view(-1, BLOCK)
    there = blocks > 0
    logs = torch.log2(blocks) * UNIT  # -inf where zero
    high = logs.amax(dim=1).ceil()
    low = logs.masked_fill(~there, torch.inf).amin(dim=1).floor()
    low = torch.maximum(low, high - RANGE * UNIT)
    empty = ~there.any(dim=1)
    high[empty] = low[empty] = 0
    place = (logs - low[:, None]) / (high - low).clamp(min=1)[:, None] * (CODES - 1)
    codes = place.masked_fill(~there, -1).round().clamp(min=0, max=CODES - 1) + 1
    flat = codes.masked_fill(~there, 0).flatten()[: vector.numel()].to(torch.uint8)
    ends = torch.stack([low, high]).to(torch.int16)
    return torch.cat([pack_nibbles(flat), as_bytes(ends)])


def decode(data: Tensor, length: int) -> Tensor:
    """The `length` numbers of `encode` in float32, within its bound.

    Raises:
        ValueError: `data` has another size, or a block whose low is above its high.
    """
    code_bytes, blocks = (length + 1) // 2, -(-length // BLOCK)
    check_size(data, code_bytes + 4 * blocks)
    codes = unpack_nibbles(data[:code_bytes], length)
    low, high = from_bytes(data[code_bytes:], torch.int16).double().view(2, blocks, 1)
    if (low > high).any():
        raise ValueError("a packed Fisher diagonal has a block whose low is above its high")
    shaped = F.pad(codes, (0, -length % BLOCK)).view(blocks, BLOCK)
    logs = low + (shaped.double() - 1) * (high - low) / (CODES - 1)
    values = torch.exp2(logs / UNIT).masked_fill(shaped == 0, 0).clamp(max=LARGEST)
    return values.flatten()[:length].float()


def _check(values: Tensor) -> None:
    if not torch.isfinite(values).all() or (values < 0).any():
        raise ValueError("a Fisher diagonal has a negative, infinite or NaN value")
