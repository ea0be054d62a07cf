"""Tensors as bytes on the wire."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednano_flwr.base import int8
from fednano_flwr.exchange.wire import fednano_pb2 as pb

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,  # for checking one side against the other
}
NAMES = (*DTYPES, "int8")
MOST_AXES = 8
MOST_NUMBERS = 2**40
"""In a tensor, and of the axes beside those of no length; no message is so long."""
LONGEST = 32
"""Characters of an unknown name that an error repeats."""
LONGEST_KEY = 32
"""Bytes of a feature's key."""


def encode(tensor: Tensor, dtype: str) -> pb.Tensor:
    """A floating-point tensor of any shape and device, cast to `dtype` (one of `NAMES`).

    Error bounds: docs/exchange.md.

    Raises:
        ValueError: a finite number that `dtype` cannot hold, or for int8 any that is not finite.
    """
    message = pb.Tensor()
    fill(message, tensor, dtype)
    return message


def fill(message: pb.Tensor, tensor: Tensor, dtype: str) -> None:
    """As `encode`, into a message that is part of another: putting it there later would copy."""
    message.dtype = dtype
    message.shape.extend(tensor.shape)
    if dtype == "int8":
        _fill_int8(message, tensor)
        return
    cast = tensor.detach().to(DTYPES[dtype])
    if cast.numel() and not cast.abs().amax().isfinite():
        lost = tensor[cast.isinf() & tensor.isfinite()]
        if len(lost):
            raise ValueError(
                f"{dtype} holds numbers up to {torch.finfo(cast.dtype).max:g}, but there is one of "
                f"{lost.abs().max():g}: set exchange.dtype to bfloat16 or float32"
            )
    message.data = _bytes(cast)


def exact(tensor: Tensor) -> str:
    """The name under which a tensor crosses as it is."""
    return str(tensor.dtype).removeprefix("torch.")


def decode(message: pb.Tensor) -> Tensor:
    """The tensor of `encode`, on the CPU and writable; int8's in float32.

    Raises:
        ValueError: an unknown dtype, bytes that do not fit the shape, or for int8 places that do
            not ascend within the tensor or numbers that are not finite.
    """
    if len(message.shape) > MOST_AXES:
        raise ValueError(f"a tensor of {len(message.shape)} axes; at most {MOST_AXES}")
    if math.prod(max(1, size) for size in message.shape) > MOST_NUMBERS:
        raise ValueError(
            f"a tensor of shape {tuple(message.shape)}; at most {MOST_NUMBERS} numbers"
        )
    if message.dtype == "int8":
        return _decode_int8(message)
    if message.dtype not in DTYPES:
        raise ValueError(f"dtype {message.dtype[:LONGEST]!r} is none of {', '.join(NAMES)}")
    shape = tuple(message.shape)
    return _tensor(message.data, DTYPES[message.dtype], shape, f"{message.dtype} of shape {shape}")


def _fill_int8(message: pb.Tensor, tensor: Tensor) -> None:
    width = tensor.shape[-1] if tensor.dim() else 1
    try:
        quantized = int8.quantize(tensor.reshape(tensor.numel() // max(1, width), width))
    except ValueError as error:
        raise ValueError(f"{error}: lower learning-rate or max-grad-norm") from error
    message.data = _bytes(quantized.codes)
    message.scales = _bytes(quantized.scales)
    message.places = _bytes(quantized.places.to(torch.int32))
    message.outliers = _bytes(quantized.outliers)


def _decode_int8(message: pb.Tensor) -> Tensor:
    shape = tuple(message.shape)
    width = shape[-1] if shape else 1
    rows, blocks = math.prod(shape[:-1]), -(-width // int8.BLOCK)
    count = len(message.places) // 4
    quantized = int8.Int8(
        codes=_tensor(message.data, torch.int8, (rows, width), f"int8 of shape {shape}"),
        scales=_tensor(
            message.scales, torch.bfloat16, (rows, blocks), f"the scales of shape {shape}"
        ),
        places=_tensor(message.places, torch.int32, (count,), f"{count} places").long(),
        outliers=_tensor(message.outliers, torch.bfloat16, (count,), f"{count} outliers"),
    )
    places = quantized.places
    within = not count or (int(places[0]) >= 0 and int(places[-1]) < rows * width)
    if not within or not (places.diff() > 0).all():
        raise ValueError(f"the outliers' places do not ascend within a tensor of shape {shape}")
    if not quantized.is_finite():
        raise ValueError("a scale or an outlier is not finite")
    return int8.dequantize(quantized).reshape(shape)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> Tensor:
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes do not hold {what} ({expected} bytes)")
    if not expected:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def check_key(key: bytes) -> None:
    """
    Raises:
        ValueError: it is no key of a feature.
    """
    if not 0 < len(key) <= LONGEST_KEY:
        raise ValueError(f"a key of {len(key)} bytes; 1 to {LONGEST_KEY}")
