"""Tensors as bytes on the wire."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednano_flwr.exchange import fednano_pb2 as pb

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,  # for checking one side against the other
}


def encode(tensor: Tensor, dtype: str) -> pb.Tensor:
    """A floating-point tensor of any shape, cast to `dtype` (a key of `DTYPES`)."""
    flat = tensor.detach().to("cpu", DTYPES[dtype]).contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes()
    return pb.Tensor(dtype=dtype, shape=tensor.shape, data=data)


def decode(message: pb.Tensor) -> Tensor:
    """The tensor of `encode`, on the CPU and writable.

    Raises:
        ValueError: an unknown dtype, or bytes that do not fit the shape.
    """
    if message.dtype not in DTYPES:
        raise ValueError(f"dtype {message.dtype!r} is none of {', '.join(DTYPES)}")
    dtype = DTYPES[message.dtype]
    expected = math.prod(message.shape) * dtype.itemsize
    if len(message.data) != expected:
        raise ValueError(
            f"{len(message.data)} bytes do not hold {message.dtype} of shape "
            f"{tuple(message.shape)} ({expected} bytes)"
        )
    if not expected:
        return torch.empty(tuple(message.shape), dtype=dtype)
    return torch.frombuffer(bytearray(message.data), dtype=dtype).reshape(tuple(message.shape))
