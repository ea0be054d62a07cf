"""Tensors as bytes on the wire."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednano_flwr.exchange import fednano_pb2 as pb
from fednano_flwr.exchange.protocol import LLMInputs

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
