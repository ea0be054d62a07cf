"""A safetensors file written a piece at a time: no tensor has to be in memory as a whole.

The format is 8 bytes with the header's length, the header (JSON: of each tensor its dtype, shape
and range of bytes), and the tensors' bytes one after another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file, of which nothing has been read."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def pieces(self) -> Iterator[Tensor]:
        """Its rows, some megabytes at a time, each through a mapping of its own."""
        if not self.shape:
            with safe_open(self.file, framework="pt") as opened:
                yield opened.get_tensor(self.key)
            return
        row = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
        step = max(1, PIECE_BYTES // row)
        for first in range(0, self.shape[0], step):
            with safe_open(self.file, framework="pt") as opened:
                yield opened.get_slice(self.key)[first : first + step]

    def whole(self) -> Tensor:
        """All of it, in memory."""
        with safe_open(self.file, framework="pt") as opened:
            return opened.get_tensor(self.key)


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written.

    Attributes:
        pieces: gives its rows, first to last, in `dtype`; called once.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def stored_in(file: Path) -> dict[str, Stored]:
    """What a file holds, by name; only its header is read.

    Raises:
        ValueError: a tensor's dtype is none of `DTYPES`.
    """
    found = {}
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118  (it is no mapping)
            header = opened.get_slice(key)
            if header.get_dtype() not in DTYPES:
                raise ValueError(f"{file}: {key} is stored as {header.get_dtype()}")
            dtype, shape = DTYPES[header.get_dtype()], tuple(header.get_shape())
            found[key] = Stored(file, key, dtype, shape)
    return found


def write(file: Path, tensors: Mapping[str, Outgoing], written: Callable[[int], None]) -> None:
    """Write a safetensors file.

    Args:
        written: told the bytes of each piece.

    Raises:
        ValueError: a tensor's pieces are not as large as it should be.
    """
    # Large elements first, so that every tensor begins at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in order:
        one = tensors[name]
        header[name] = {
            "dtype": NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [place, place + one.nbytes],
        }
        place += one.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            count = 0
            for piece in tensors[name].pieces():
                if piece.dtype != tensors[name].dtype:
                    raise ValueError(f"{name}: {piece.dtype} among {tensors[name].dtype}")
                raw = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
                opened.write(raw.data)
                count += raw.nbytes
                written(raw.nbytes)
            if count != tensors[name].nbytes:
                raise ValueError(f"{name}: {count} bytes instead of {tensors[name].nbytes}")
