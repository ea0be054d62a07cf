"""Tensors as bytes on the wire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fednano_flwr.exchange import fednano_pb2 as pb
from fednano_flwr.exchange.protocol import LLMInputs, LowRankInputs

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


def encode_inputs(inputs: LLMInputs | LowRankInputs, dtype: str) -> pb.Inputs:
    """A batch, its numbers cast to `dtype`."""
    message = pb.Inputs(
        lengths=inputs.lengths,
        position_ids=_integers(inputs.position_ids),
        token_type_ids=_integers(inputs.token_type_ids),
    )
    if isinstance(inputs, LLMInputs):
        message.embeddings.CopyFrom(encode(inputs.embeds, dtype))
        return message
    message.low_rank.token_ids.extend(inputs.token_ids.tolist())
    message.low_rank.image_runs.extend(_runs(inputs.is_image))
    message.low_rank.features.extend(inputs.keys)
    message.low_rank.factors.extend(encode_factors(inputs.z, inputs.b, dtype))
    return message


def decode_inputs(message: pb.Inputs) -> LLMInputs | LowRankInputs:
    """The batch of `encode_inputs`.

    Raises:
        ValueError: tensors that cannot be decoded, or parts that do not fit each other.
    """
    lengths = tuple(message.lengths)
    count = sum(lengths)
    if count and (
        len(message.position_ids) % count or len(message.token_type_ids) not in (0, count)
    ):
        raise ValueError(
            f"{len(message.position_ids)} position ids and {len(message.token_type_ids)} token "
            f"types do not fit {count} embeddings"
        )
    positions = torch.tensor(list(message.position_ids)).reshape(-1, max(1, count))
    types = torch.tensor(list(message.token_type_ids))
    layout = (positions if len(positions) else None, types if len(types) else None)
    if not message.HasField("low_rank"):
        return LLMInputs(decode(message.embeddings), lengths, *layout)
    is_image = _from_runs(message.low_rank.image_runs, count)
    tokens = torch.tensor(list(message.low_rank.token_ids), dtype=torch.int64)
    if len(tokens) != count - int(is_image.sum()):
        raise ValueError(f"{len(tokens)} token ids for {count - int(is_image.sum())} rows of text")
    z, b = decode_factors(message.low_rank.factors)
    keys = tuple(message.low_rank.features)
    return LowRankInputs(tokens, is_image, keys, z, b, lengths, *layout)


def encode_factors(
    z: Mapping[str, Tensor], b: Mapping[str, Tensor], dtype: str
) -> list[pb.Factors]:
    """Factors of each site, or their gradients."""
    return [pb.Factors(site=s, z=encode(z[s], dtype), b=encode(b[s], dtype)) for s in sorted(z)]


def decode_factors(messages: Iterable[pb.Factors]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """z and b by site.

    Raises:
        ValueError: a tensor that cannot be decoded, or a site named twice.
    """
    z: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for message in messages:
        if message.site in z or message.site not in ("image", "text"):
            raise ValueError(f"factors of site {message.site!r}: once each, image and text")
        z[message.site], b[message.site] = decode(message.z), decode(message.b)
    return z, b


def _runs(is_image: Tensor) -> list[int]:
    """Lengths of runs of rows: tokens, image, tokens, image, …"""
    flags = is_image.to("cpu", torch.int8)
    edges = (flags.diff(prepend=flags.new_zeros(1)) != 0).nonzero().squeeze(1).tolist()
    return [end - start for start, end in pairwise([0, *edges, len(flags)])]


def _from_runs(runs: Sequence[int], count: int) -> Tensor:
    if sum(runs) != count:
        raise ValueError(f"runs of tokens and images of {sum(runs)} rows for {count}")
    kinds = torch.arange(len(runs)) % 2 == 1
    return kinds.repeat_interleave(torch.tensor(list(runs), dtype=torch.int64))


def _integers(values: Tensor | None) -> list[int]:
    return [] if values is None else values.flatten().tolist()
