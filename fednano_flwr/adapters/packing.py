"""A client's adapters as bytes: the change by training, in 8 or 4 bits a number.

Neither names nor shapes travel: both sides know them from the adapters that the server sent. The
change is one vector in blocks of 64, each with a scale of its own (base/int8.py, without outliers):
n numbers take n (8 bits) or ⌈n / 2⌉ (4 bits) bytes, and 2 for each of ⌈n / 64⌉ scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano_flwr.base.int8 import BLOCK, Int8, dequantize, quantize

BITS = {"int8": 8, "int4": 4}
State = Mapping[str, Tensor]
Shapes = Mapping[str, Sequence[int]]


def shapes_of(state: State) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by its name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte, the first in the low half; an odd one out has a zero beside it.

    Args:
        codes: (n,) uint8, each below 16.

    Returns:
        (⌈n / 2⌉,) uint8.
    """
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return codes[::2] | (codes[1::2] << 4)


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The first `count` codes of `pack_nibbles`, (count,) uint8."""
    return torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:count]


def as_bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory, (bytes,) uint8."""
    return tensor.contiguous().flatten().view(torch.uint8)


def from_bytes(data: Tensor, dtype: torch.dtype) -> Tensor:
    """What `as_bytes` was given, flat; `data` may lie anywhere in memory."""
    return data.clone().view(dtype)


def flatten(state: State) -> Tensor:
    """All numbers of a state in the order of its sorted names, (n,) float32."""
    return torch.cat([state[name].detach().cpu().float().flatten() for name in sorted(state)])


def unflatten(vector: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """The state of these shapes that `flatten` made into `vector`."""
    names = sorted(shapes)
    sizes = [torch.Size(shapes[name]).numel() for name in names]
    parts = vector.split(sizes)
    return {
        name: part.reshape(tuple(shapes[name])).clone()
        for name, part in zip(names, parts, strict=True)
    }


def count(shapes: Shapes) -> int:
    """Numbers in a state of these shapes."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def check_size(data: Tensor, expected: int) -> None:
    """Refuse bytes that cannot be what they are said to be.

    Raises:
        ValueError: not `expected` bytes in one row.
    """
    if data.dtype != torch.uint8 or tuple(data.shape) != (expected,):
        raise ValueError(
            f"packed numbers are {data.dtype} of shape {tuple(data.shape)}, not {expected} bytes"
        )


@dataclass(frozen=True)
class Packed:
    """Adapters as bytes, and what they leave out.

    Attributes:
        data: uint8, one row.
        residual: by parameter name; what the decoded bytes lack.
    """

    data: Tensor
    residual: dict[str, Tensor]


def pack_adapters(theta: State, sent: State, kind: str, residual: State | None = None) -> Packed:
    """Round what training changed, together with what earlier roundings left out.

    Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019), Q the codec:

        c_t = θ_t − θ_sent + e_t,    e_{t+1} = c_t − Q(c_t),    e_0 = 0

    so that Σ Q(c_t) = Σ (θ_t − θ_sent) − e_T: however many rounds, the sum is off by the last
    residual alone, and that is within half a step of its block.

    Args:
        theta: after training.
        sent: the adapters that training started from.
        kind: "int8" or "int4".
        residual: e_t; None for zero.

    Raises:
        ValueError: names or shapes differ, or a number is not finite.
    """
    for what, state in (("trained adapters", theta), ("kept residual", residual)):
        if state is not None and shapes_of(state) != shapes_of(sent):
            raise ValueError(f"{what} have shapes {shapes_of(state)}, those sent {shapes_of(sent)}")
    change = flatten(theta) - flatten(sent)
    if residual is not None:
        change += flatten(residual)
    bits = BITS[kind]
    data = quantize_change(change, bits)
    left = change - dequantize_change(data, change.numel(), bits)
    return Packed(data, unflatten(left, shapes_of(sent)))


def unpack_adapters(data: Tensor, sent: State, kind: str) -> dict[str, Tensor]:
    """The adapters that `pack_adapters` stands for: θ_sent + Q(c_t).

    Raises:
        ValueError: `data` is not what a client writes.
    """
    change = dequantize_change(data, count(shapes_of(sent)), BITS[kind])
    return unflatten(flatten(sent) + change, shapes_of(sent))


def steps(bits: int) -> int:
    """Codes on either side of zero: 127 or 7."""
    return 2 ** (bits - 1) - 1


def quantize_change(vector: Tensor, bits: int) -> Tensor:
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


def dequantize_change(data: Tensor, count: int, bits: int) -> Tensor:
    """The `count` numbers of `quantize_change` in float32, within its bound.

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
