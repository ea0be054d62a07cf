"""What training changed in the adapters, in 8 or 4 bits a number.

The exchange's block codec (exchange/int8.py) without outliers: blocks of 64 along the vector, each
with a scale of its own. Adapter changes need no outliers, and without them the size is fixed:
n numbers take n (8 bits) or ⌈n / 2⌉ (4 bits) bytes and 2 for each of ⌈n / 64⌉ scales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednano_flwr.adapters.packing import (
    as_bytes,
    check_size,
    from_bytes,
    pack_nibbles,
    unpack_nibbles,
)
from fednano_flwr.base.int8 import BLOCK, Int8, dequantize, quantize

BITS = {"int8": 8, "int4": 4}


def steps(bits: int) -> int:
    """Codes on either side of zero: 127 or 7."""
    return 2 ** (bits - 1) - 1


def encode(vector: Tensor, bits: int) -> Tensor:
    """Round each number to the nearest of its block's 2 · steps + 1 values.

    s = max |x| / steps of a block, rounded to bfloat16 (float32's range) and never below
    1.2·10⁻³⁸; x̂ = s · round(x / s), so that |x − x̂| ≤ s / 2, up to float32's own rounding.

    Args:
        vector: (n,) floating point.
        bits: 8 or 4.

    Returns:
        uint8, one row: codes (offset by `steps`, two a byte for 4 bits), then the scales.

    Raises:
        ValueError: a number is not finite or above 10³⁷, which no training gives.
    """
    if not torch.isfinite(vector).all() or (vector.abs() > 1e37).any():
        raise ValueError("the adapters' change has a number that is infinite, NaN or above 1e37")
    blocks = quantize(vector[None], threshold=math.inf, steps=steps(bits))
    codes = (blocks.codes[0] + steps(bits)).view(torch.uint8)
    return torch.cat([pack_nibbles(codes) if bits == 4 else codes, as_bytes(blocks.scales)])


def decode(data: Tensor, count: int, bits: int) -> Tensor:
    """The `count` numbers of `encode` in float32, within its bound.

    Raises:
        ValueError: `data` has another size, a code that there is none of, or a scale that is not
            finite and above 0.
    """
    code_bytes = (count * bits + 7) // 8
    check_size(data, code_bytes + 2 * -(-count // BLOCK))
    codes, scales = data[:code_bytes], from_bytes(data[code_bytes:], torch.bfloat16)
    if not torch.isfinite(scales).all() or (scales <= 0).any():
        raise ValueError("a packed adapter has a scale that is not finite and above 0")
    if bits == 4:
        codes = unpack_nibbles(codes, count)
    if (codes > 2 * steps(bits)).any():
        raise ValueError(f"a packed adapter has a code above {2 * steps(bits)}")
    signed = (codes.short() - steps(bits)).to(torch.int8)
    none = torch.zeros(0, dtype=torch.int64)
    return dequantize(Int8(signed[None], scales[None], none, none.bfloat16()))[0]
