"""Numbers smaller than a byte, and states as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

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
