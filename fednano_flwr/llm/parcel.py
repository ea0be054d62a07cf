"""Values with tensors in them, as bytes and flat buffers: what moves between two processes.

Pickle alone copies a tensor several times over. Here its memory travels apart, as an array that
Ray's object store takes and gives without looking into it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parcel = tuple[bytes, list[np.ndarray]]


def pack(value: Any) -> Parcel:
    """A picklable value; its tensors lose their graph and their device, and nothing else."""
    buffers: list[pickle.PickleBuffer] = []
    out = io.BytesIO()
    _Pickler(out, protocol=5, buffer_callback=buffers.append).dump(value)
    return out.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def unpack(data: bytes, buffers: Sequence[np.ndarray]) -> Any:
    """The value again; its tensors are on the CPU, in memory of their own that may be written."""
    return pickle.loads(data, buffers=buffers)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        flat: Any = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(flat), value.dtype, tuple(value.shape))


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    memory = bytearray(buffer)
    if not memory:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)
