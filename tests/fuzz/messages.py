"""Messages no client of this project sends: cut, flipped, absurd, or good but for a detail."""

from __future__ import annotations

import random
import struct
from typing import Any

import torch
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fednano_flwr.config import SITES
from fednano_flwr.exchange.protocol import PROTOCOL_VERSION
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.methods import METHODS

VICTIMS_KEY = b"the victim's"
OWN_KEYS = (b"a", b"b", b"c" * 32)
KINDS = tuple(METHODS)
HOWS = ("spoiled", "absurd", "cut and flipped")
INTEGERS = (0, 1, 2, 3, 7, 64, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
WIDE = (*INTEGERS, 2**63, 2**64 - 1)
FLOATS = (0.0, 1.0, -1.0, 1e38, 3e38, 1e-40, float("inf"), float("-inf"), float("nan"))
DTYPES = ("float32", "float32", "bfloat16", "float64", "int8")
WORDS = ("", "float32", "bfloat16", "int8", "float64", "float8", "image", "text", "\0", "é" * 40)

MUTANTS = 16
"""Of one call: they cost less to make than the draw that they come from."""


def header() -> pb.Header:
    return pb.Header(protocol=PROTOCOL_VERSION, run=1, node=2)


def tensor(rng: random.Random, *shape: int, dtype: str = "") -> pb.Tensor:
    """A good tensor, sometimes of numbers that no training gives."""
    values = torch.tensor([rng.uniform(-2, 2) for _ in range(torch.Size(shape).numel())])
    if values.numel() and rng.random() < 0.1:
        values[rng.randrange(len(values))] = rng.choice(FLOATS)
    dtype = dtype or rng.choice(DTYPES)
    try:
        return codec.encode(values.reshape(shape), dtype)
    except ValueError:  # int8 holds finite numbers only, and the other part may be float32 then
        return codec.encode(values.reshape(shape), "float32")


def inputs(rng: random.Random, size: int, vocabulary: int, keys: tuple[bytes, ...]) -> pb.Inputs:
    """A good batch; some are a step of the caller's session, or of none."""
    batch = _inputs(rng, size, vocabulary, keys)
    if rng.random() < 0.2:
        batch.turn.CopyFrom(turn(rng))
    return batch


def turn(rng: random.Random) -> pb.Turn:
    """Of a session that there may not be."""
    return pb.Turn(session=rng.choice((1, *WIDE)), number=rng.randint(1, 3), factor=rng.random())


def _inputs(rng: random.Random, size: int, vocabulary: int, keys: tuple[bytes, ...]) -> pb.Inputs:
    lengths = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
    count = sum(lengths)
    if rng.random() < 0.4:
        return pb.Inputs(lengths=lengths, embeddings=tensor(rng, count, size))
    pictured = 2 if keys and count > 2 and rng.random() < 0.7 else 0  # a feature has two rows
    runs = [count - pictured, pictured] if pictured else [count]
    batch = pb.Inputs(lengths=lengths)
    low = batch.low_rank
    low.run_lengths.extend(runs)
    low.run_sites.extend([SITES.index("text"), SITES.index("image")][: len(runs)])
    low.token_ids.extend(rng.randrange(vocabulary) for _ in range(count - pictured))
    if pictured:
        low.features.append(rng.choice(keys))
    for site, rows in (("image", pictured), ("text", count - pictured)):
        if rng.random() < 0.7:
            rank, dtype = rng.randint(1, 3), rng.choice(DTYPES)
            z, b = tensor(rng, rows, rank, dtype=dtype), tensor(rng, size, rank, dtype=dtype)
            low.factors.add(site=site, z=z, b=b)
    return batch


def good(
    kind: str, rng: random.Random, size: int, vocabulary: int, graphs: tuple[int, ...] = ()
) -> pb.Call:
    """A call that asks for something sensible, if perhaps of somebody else."""
    keys = (*OWN_KEYS, VICTIMS_KEY)
    call = pb.Call()
    request = getattr(call, kind)
    request.header.CopyFrom(header())
    if kind in ("describe", "begin"):
        return call
    if kind == "end":
        request.turn.CopyFrom(turn(rng))
        return call
    if kind == "register":
        request.model, request.fingerprint, request.hidden_size = "mine", "f", size
        return call
    if kind == "keep_features":
        for _ in range(rng.randint(0, 2)):
            request.features.add(key=rng.choice(OWN_KEYS), rows=tensor(rng, 2, size))
        return call
    if kind == "lacks":
        request.keys.extend(rng.choice(keys) for _ in range(rng.randint(0, 3)))
        return call
    if kind == "backward":
        request.graph = rng.choice((*graphs, *WIDE))
        request.dtype = rng.choice(WORDS)
        request.gradient.CopyFrom(tensor(rng, rng.randint(1, 3), vocabulary))
        return call
    if kind == "reserve":
        request.tokens = rng.randint(1, 20)
        return call
    if kind == "release":
        request.cache = rng.choice((*graphs, *WIDE))
        return call
    if kind == "decode":
        request.cache = rng.choice((*graphs, *WIDE))
        request.sequences.extend(range(rng.randint(1, 3)))
        count = len(request.sequences)
        request.tokens.extend(rng.randrange(vocabulary) for _ in range(count))
        request.rows.CopyFrom(tensor(rng, count, rng.choice((size, 1, 2, 3))))
        return call
    request.inputs.CopyFrom(inputs(rng, size, vocabulary, keys))
    count = sum(request.inputs.lengths)
    if kind == "prefill":
        request.cache = rng.choice((*graphs, *WIDE))
        return call
    places = sorted(rng.sample(range(count), rng.randint(1, count)))
    if kind == "step":
        request.label_positions.extend(places)
        request.labels.extend(rng.randrange(vocabulary) for _ in places)
        request.dtype = rng.choice(DTYPES)
        return call
    request.positions.extend(places)
    if kind == "token_losses":
        request.tokens.extend(rng.randrange(vocabulary) for _ in places)
    if kind == "score":
        request.candidates.extend(rng.randrange(vocabulary) for _ in range(rng.randint(0, 3)))
    return call


def spoil(message: Message, rng: random.Random, times: int) -> None:
    """Change fields anywhere in a message: numbers, lists, bytes, names, whole parts."""
    for _ in range(times):
        part, field = _somewhere(message, rng)
        if field is None:
            continue
        if field.is_repeated:
            _spoil_list(getattr(part, field.name), field, rng)
        elif field.message_type is not None:
            if rng.random() < 0.5:
                part.ClearField(field.name)
            else:
                fill(getattr(part, field.name), rng)
        else:
            setattr(part, field.name, _other(getattr(part, field.name), field, rng))


def _somewhere(message: Message, rng: random.Random) -> tuple[Any, FieldDescriptor | None]:
    """A field of the message, or of one of those in it."""
    part: Any = message
    while True:
        fields = [f for f, _ in part.ListFields()]
        inner = [f for f in fields if f.message_type is not None]
        if inner and rng.random() < 0.75:
            field = rng.choice(inner)
            value = getattr(part, field.name)
            part = rng.choice(list(value)) if field.is_repeated else value
            continue
        candidates = [f for f in part.DESCRIPTOR.fields if f in fields or rng.random() < 0.3]
        return part, rng.choice(candidates) if candidates else None


def _spoil_list(values: Any, field: FieldDescriptor, rng: random.Random) -> None:
    what = rng.randrange(5)
    if field.message_type is not None:
        if values and what < 2:
            values.add().CopyFrom(rng.choice(list(values)))
        elif values and what == 2:
            del values[rng.randrange(len(values))]
        else:
            fill(values.add(), rng)
    elif values and what == 0:
        values[rng.randrange(len(values))] = _scalar(field, rng)
    elif values and what == 1:
        del values[rng.randrange(len(values))]
    elif values and what == 2:
        values.extend(list(values))
    elif what == 3:
        values.extend(_scalar(field, rng) for _ in range(rng.choice((1, 3, 100))))
    else:
        del values[:]


def _other(value: Any, field: FieldDescriptor, rng: random.Random) -> Any:
    """Another value of a field: near the one it has, or any."""
    if isinstance(value, bytes) and value and rng.random() < 0.7:
        return mutant(value, rng)
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.3:
        return (value + rng.choice((-1, 1))) % 2**32
    return _scalar(field, rng)


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_UINT64:
        return rng.choice(WIDE)
    if kind == FieldDescriptor.CPPTYPE_UINT32:
        return rng.choice(INTEGERS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(WORDS)
    return rng.choice(
        (
            b"",
            VICTIMS_KEY,
            rng.randbytes(rng.choice((1, 4, 33, 256))),
            struct.pack("<f", rng.choice(FLOATS)) * rng.choice((1, 8, 64)),
            b"\xff" * rng.choice((2, 4, 8)),
        )
    )


def fill(message: Message, rng: random.Random, depth: int = 4) -> None:
    """Structurally sound, and absurd: any value in any field."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.4:
            continue
        if field.message_type is None:
            if field.is_repeated:
                count = rng.choice((0, 1, 2, 5, 50))
                getattr(message, field.name).extend(_scalar(field, rng) for _ in range(count))
            else:
                setattr(message, field.name, _scalar(field, rng))
        elif depth:
            if field.is_repeated:
                for _ in range(rng.randint(0, 2)):
                    fill(getattr(message, field.name).add(), rng, depth - 1)
            elif field.name == "header" and rng.random() < 0.8:
                message.header.CopyFrom(header())  # type: ignore[attr-defined]
            else:
                fill(getattr(message, field.name), rng, depth - 1)


def mutant(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut out, doubled, put in, or all of them others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        what, at = rng.randrange(7), rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 2, 8, 64)))
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del changed[at:]
        elif what == 2:
            del changed[at:end]
        elif what == 3:
            changed[at:at] = changed[at:end]
        elif what == 4:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        elif what == 5 and at < len(changed):
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif what == 6:
            changed += rng.randbytes(rng.choice((1, 100, 5000)))
    return bytes(changed) if rng.random() < 0.98 else rng.randbytes(rng.randint(0, 300))


def calls(
    rng: random.Random, how: str, size: int, vocabulary: int, graphs: tuple[int, ...] = ()
) -> list[bytes]:
    """Serialized calls.

    Args:
        how: one of `HOWS`.
        graphs: numbers that a call may name, of graphs and caches.
    """
    kind = rng.choice(KINDS)
    if how == "absurd":
        call = pb.Call()
        getattr(call, kind).SetInParent()
        fill(getattr(call, kind), rng)
        return [call.SerializeToString()]
    call = good(kind, rng, size, vocabulary, graphs)
    if how == "spoiled":
        spoil(call, rng, rng.randint(0, 3))
        return [call.SerializeToString()]
    whole = call.SerializeToString()
    return [mutant(whole, rng) for _ in range(MUTANTS)]
