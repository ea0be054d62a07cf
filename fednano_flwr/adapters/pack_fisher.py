"""Fisher diagonals in 8 or 4 bits a number, spaced evenly in their logarithm, or one a feature.

Fisher values weigh: what counts is their ratio between clients, over many powers of ten. So the
error is bounded relative to the value.
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
    flatten,
    from_bytes,
    pack_nibbles,
    unflatten,
    unpack_nibbles,
)
from fednano_flwr.adapters.product import DOWN, UP
from fednano_flwr.base.int8 import BLOCK

BITS = {"log8": 8, "log4": 4}
RANGE = 24
"""Powers of two between a block's largest value and the smallest that is told apart."""
UNIT = 128
"""A block's ends are kept as whole 128ths of a power of two, which int16 holds for all float32."""
LARGEST = torch.finfo(torch.float32).max


def encode(vector: Tensor, bits: int) -> Tensor:
    """Code 0 is zero; 1 to 2^bits − 1 go evenly, in the logarithm, from a block's low to its high.

    high is the block's largest value and low its smallest above zero, but at least 2⁻²⁴ high, both
    rounded outwards to 128ths of a power of two. With K = 2^bits − 1 codes,

        |log2 x̂ − log2 x| ≤ (log2 high − log2 low) / (2 (K − 1)) ≤ 24 / (2 (K − 1))

    so x̂ is within 3.4 % of x with 8 bits and within a factor of 1.82 with 4, whatever the values;
    of the smaller range that a block commonly has, nearer. x below low, and only then, becomes
    low = 2⁻²⁴ high: high being rounded up, up to 0.6 % above 2⁻²⁴ of the block's largest.

    Args:
        vector: (n,) ≥ 0, floating point.
        bits: 8 or 4.

    Returns:
        uint8, one row: n codes (two a byte for 4 bits), then 4 bytes for each of ⌈n / 64⌉ blocks.

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
    last = 2**bits - 1
    place = (logs - low[:, None]) / (high - low).clamp(min=1)[:, None] * (last - 1)
    codes = place.masked_fill(~there, -1).round().clamp(min=0, max=last - 1) + 1
    flat = codes.masked_fill(~there, 0).flatten()[: vector.numel()].to(torch.uint8)
    ends = torch.stack([low, high]).to(torch.int16)
    return torch.cat([pack_nibbles(flat) if bits == 4 else flat, as_bytes(ends)])


def decode(data: Tensor, count: int, bits: int) -> Tensor:
    """The `count` numbers of `encode` in float32, within its bound.

    Raises:
        ValueError: `data` has another size, or a block whose low is above its high.
    """
    code_bytes, blocks = (count * bits + 7) // 8, -(-count // BLOCK)
    check_size(data, code_bytes + 4 * blocks)
    codes = data[:code_bytes]
    if bits == 4:
        codes = unpack_nibbles(codes, count)
    low, high = from_bytes(data[code_bytes:], torch.int16).double().view(2, blocks, 1)
    if (low > high).any():
        raise ValueError("a packed Fisher diagonal has a block whose low is above its high")
    shaped = F.pad(codes, (0, -count % BLOCK)).view(blocks, BLOCK)
    logs = low + (shaped.double() - 1) * (high - low) / (2**bits - 2)
    values = torch.exp2(logs / UNIT).masked_fill(shaped == 0, 0).clamp(max=LARGEST)
    return values.flatten()[:count].float()


def encode_rows(fisher: State) -> Tensor:
    """One number for each of the d features of a factor: its mean over the rank.

    A (r, d) takes features in and B (d, r) gives them out, so the mean is over A's rows and over
    B's columns: the features differ by what the data holds, the r directions between them are
    arbitrary (A and B may be turned against each other without changing B A). It is all that
    `fisher-product` asks for; a strategy that weighs each number gets the mean for all r of them.

    Args:
        fisher: by parameter name, A (r, d) and B (d, r), each ≥ 0.

    Returns:
        uint8, one row: d float32 numbers for each factor, in the order of the sorted names.

    Raises:
        ValueError: a number is negative, infinite or NaN, or a name is of no factor.
    """
    for value in fisher.values():
        _check(value)
    return as_bytes(flatten({name: v.mean(_rank_axis(name)) for name, v in fisher.items()}))


def decode_rows(data: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Fisher diagonals of these shapes, the same along the rank.

    Raises:
        ValueError: `data` has another size, or a name is of no factor.
    """
    kept = {name: [shape[1 - _rank_axis(name)]] for name, shape in shapes.items()}
    check_size(data, 4 * sum(d for (d,) in kept.values()))
    return {
        name: values.unsqueeze(_rank_axis(name)).expand(tuple(shapes[name])).contiguous()
        for name, values in unflatten(from_bytes(data, torch.float32), kept).items()
    }


def _rank_axis(name: str) -> int:
    if name.endswith(DOWN):
        return 0
    if name.endswith(UP):
        return 1
    raise ValueError(f"{name} is no LoRA factor, so it has no rank to take the mean over")


def _check(values: Tensor) -> None:
    if not torch.isfinite(values).all() or (values < 0).any():
        raise ValueError("a Fisher diagonal has a negative, infinite or NaN value")
