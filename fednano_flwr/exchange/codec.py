"""Tensors as bytes on the wire."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednano_flwr.exchange import fednano_pb2 as pb
from fednano_flwr.exchange import int8
from fednano_flwr.exchange.protocol import LLMInputs

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,  # for checking one side against the other
}


NAMES = (*DTYPES, "int8")


def encode(tensor: Tensor, dtype: str) -> pb.Tensor:
    """A floating-point tensor of any shape and device, cast to `dtype` (one of `NAMES`).

    Error bounds: docs/exchange.md.

    Raises:
        ValueError: a finite number that `dtype` cannot hold, or for int8 any that is not finite.
    """
    if dtype == "int8":
        return _encode_int8(tensor)
    cast = tensor.detach().to(DTYPES[dtype])
    if cast.numel() and not cast.abs().amax().isfinite():
        lost = tensor[cast.isinf() & tensor.isfinite()]
        if len(lost):
            raise ValueError(
                f"{dtype} holds numbers up to {torch.finfo(cast.dtype).max:g}, but there is one of "
                f"{lost.abs().max():g}: set exchange.dtype to bfloat16 or float32"
            )
    return pb.Tensor(dtype=dtype, shape=tensor.shape, data=_bytes(cast))


def decode(message: pb.Tensor) -> Tensor:
    """The tensor of `encode`, on the CPU and writable; int8's in float32.

    Raises:
        ValueError: an unknown dtype, bytes that do not fit the shape, or for int8 places that do
            not ascend within the tensor or numbers that are not finite.
    """
    if message.dtype == "int8":
        return _decode_int8(message)
    if message.dtype not in DTYPES:
        raise ValueError(f"dtype {message.dtype!r} is none of {', '.join(NAMES)}")
    shape = tuple(message.shape)
    return _tensor(message.data, DTYPES[message.dtype], shape, f"{message.dtype} of shape {shape}")


def _encode_int8(tensor: Tensor) -> pb.Tensor:
    width = tensor.shape[-1] if tensor.dim() else 1
    try:
        quantized = int8.quantize(tensor.reshape(tensor.numel() // max(1, width), width))
    except ValueError as error:
        raise ValueError(f"{error}: lower learning-rate or max-grad-norm") from error
    return pb.Tensor(
        dtype="int8",
        shape=tensor.shape,
        data=_bytes(quantized.codes),
        scales=_bytes(quantized.scales),
        places=_bytes(quantized.places.to(torch.int32)),
        outliers=_bytes(quantized.outliers),
    )


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


def encode_inputs(inputs: LLMInputs, dtype: str) -> pb.Inputs:
    """A batch, its embeddings cast to `dtype`."""
    return pb.Inputs(
        embeddings=encode(inputs.embeds, dtype),
        lengths=inputs.lengths,
        position_ids=_integers(inputs.position_ids),
        token_type_ids=_integers(inputs.token_type_ids),
    )


def decode_inputs(message: pb.Inputs) -> LLMInputs:
    """The batch of `encode_inputs`.

    Raises:
        ValueError: embeddings that cannot be decoded, or integers that do not fit them.
    """
    embeds = decode(message.embeddings)
    count = max(1, len(embeds))
    if len(message.position_ids) % count or len(message.token_type_ids) not in (0, count):
        raise ValueError(
            f"{len(message.position_ids)} position ids and {len(message.token_type_ids)} token "
            f"types do not fit {count} embeddings"
        )
    positions = torch.tensor(list(message.position_ids)).reshape(-1, count)
    types = torch.tensor(list(message.token_type_ids))
    return LLMInputs(
        embeds,
        tuple(message.lengths),
        positions if len(positions) else None,
        types if len(types) else None,
    )


def _integers(values: Tensor | None) -> list[int]:
    return [] if values is None else values.flatten().tolist()
