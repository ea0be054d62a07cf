"""Tensors as bytes on the wire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.base import int8
from fednano_flwr.exchange.generation import NewToken
from fednano_flwr.exchange.protocol import Inputs, LLMInputs, LowRankInputs
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


def fill_inputs(message: pb.Inputs, inputs: Inputs, dtype: str) -> None:
    """A batch, its numbers cast to `dtype`."""
    message.lengths.extend(inputs.lengths)
    message.position_ids.extend(_integers(inputs.position_ids))
    message.token_type_ids.extend(_integers(inputs.token_type_ids))
    if isinstance(inputs, LLMInputs):
        fill(message.embeddings, inputs.embeds, dtype)
        return
    message.low_rank.token_ids.extend(inputs.token_ids.tolist())
    message.low_rank.image_runs.extend(_runs(inputs.is_image))
    message.low_rank.features.extend(inputs.keys)
    fill_factors(message.low_rank.factors, inputs.z, inputs.b, dtype)


def decode_inputs(message: pb.Inputs) -> Inputs:
    """The batch of `fill_inputs`.

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


def fill_token(message: pb.DecodeRequest, token: NewToken, dtype: str) -> None:
    """One more token of a sequence, its numbers cast to `dtype`."""
    message.token = token.id
    message.position.extend(_integers(token.position))
    if token.z is not None:
        fill(message.z, token.z, dtype)
    if token.embedding is not None:
        fill(message.embedding, token.embedding, dtype)


def decode_token(message: pb.DecodeRequest) -> NewToken:
    """The token of `fill_token`.

    Raises:
        ValueError: tensors that cannot be decoded.
    """
    return NewToken(
        id=message.token,
        z=decode(message.z) if message.HasField("z") else None,
        embedding=decode(message.embedding) if message.HasField("embedding") else None,
        position=torch.tensor(list(message.position)) if message.position else None,
    )


def fill_factors(
    messages: Any, z: Mapping[str, Tensor], b: Mapping[str, Tensor], dtype: str
) -> None:
    """Factors of each site, or their gradients, into a repeated field."""
    for site in sorted(z):
        message = messages.add(site=site)
        fill(message.z, z[site], dtype)
        fill(message.b, b[site], dtype)


def decode_factors(messages: Iterable[pb.Factors]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """z and b by site.

    Raises:
        ValueError: a tensor that cannot be decoded, or a site named twice.
    """
    z: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for message in messages:
        if message.site in z or message.site not in ("image", "text"):
            raise ValueError(
                f"factors of site {message.site[:LONGEST]!r}: once each, image and text"
            )
        z[message.site], b[message.site] = decode(message.z), decode(message.b)
    return z, b


def _runs(is_image: Tensor) -> list[int]:
    """Lengths of runs of rows: tokens, image, tokens, image, …"""
    flags = is_image.to("cpu", torch.int8)
    edges = (flags.diff(prepend=flags.new_zeros(1)) != 0).nonzero().squeeze(1).tolist()
    return [end - start for start, end in pairwise([0, *edges, len(flags)])]


def _from_runs(runs: Sequence[int], count: int) -> Tensor:
    if len(runs) > count + 1:  # but for the first, none is empty
        raise ValueError(f"{len(runs)} runs of tokens and images for {count} rows")
    if sum(runs) != count:
        raise ValueError(f"runs of tokens and images of {sum(runs)} rows for {count}")
    kinds = torch.arange(len(runs)) % 2 == 1
    return kinds.repeat_interleave(torch.tensor(list(runs), dtype=torch.int64))


def _integers(values: Tensor | None) -> list[int]:
    return [] if values is None else values.flatten().tolist()
