"""Updates and metrics in Flower's records.

Adapters are arrays `theta.NAME`, Fisher diagonals arrays `fisher.NAME`. A packed update has one
array of bytes for all adapters, one for all Fisher diagonals, since each array of a record costs
some 200 bytes of its own; the key says how they are packed: `packed.theta.int4`,
`packed.fisher.log4`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from fednano_flwr.adapters.pack_fisher import pack_fisher, unpack_fisher
from fednano_flwr.adapters.packing import BITS, State, pack_adapters, shapes_of, unpack_adapters
from fednano_flwr.adapters.update import Update
from fednano_flwr.config import Upload
from fednano_flwr.edge.local_state import LocalState
from fednano_flwr.models.lora import PREFIX

THETA, FISHER, PACKED = "theta.", "fisher.", "packed."
AT_LLM = THETA + PREFIX
RESIDUAL = "upload-residual"
"""A client's local state: the part of its updates that rounding has left out so far."""
SCORE, TEST_LOSS = ("score", "num-examples"), ("test-loss", "test-tokens")
"""Metrics of an evaluate reply: a sum over test questions, or over the tokens of their right
answers, and what it is divided by for the mean."""
SESSION = "llm-session"
"""Metric of a train reply: number of the session whose result the host has."""
CLIENT_FAILED = 100  # code of an error reply whose reason is written for people


def to_arrays(
    theta: Mapping[str, Tensor], fisher: Mapping[str, Tensor] | None = None
) -> ArrayRecord:
    """One record of parameters and, where there are any, their Fisher diagonals."""
    arrays = {THETA + key: Array(value.numpy()) for key, value in theta.items()}
    for key, value in (fisher or {}).items():
        arrays[FISHER + key] = Array(value.cpu().numpy())
    return ArrayRecord(arrays)


def from_arrays(record: ArrayRecord, prefix: str = THETA) -> dict[str, Tensor]:
    """The tensors under one prefix, by their names without it.

    Raises:
        ValueError: one cannot be read.
    """
    return {
        key.removeprefix(prefix): to_tensor(record, key) for key in record if key.startswith(prefix)
    }


def to_tensor(record: ArrayRecord, key: str) -> Tensor:
    """One array of a record as its data has it, whatever the record says of it.

    Raises:
        ValueError: it cannot be read; names the key.
    """
    array = record[key]
    try:
        _check_size(array.data)
        return torch.from_numpy(array.numpy().copy())
    except Exception as error:  # there is no end to what bytes from elsewhere can be
        raise ValueError(f"{key} cannot be read: {type(error).__name__}: {error}") from None


def _check_size(data: bytes) -> None:
    """Refuse an npy file that has not the size its header says, before room is made for it."""
    stream = BytesIO(data)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are no {dtype} array of shape {shape}")


def to_upload(
    theta: State, fisher: State | None, sent: State, upload: Upload, own: LocalState | None
) -> ArrayRecord:
    """What a client replies, as `upload` says: float32 as ever, or packed.

    Args:
        theta, fisher: of training; no `theta` where nothing is to be sent.
        sent: adapters that training started from; those that are not in `theta` are not sent back.
        own: keeps the residual for error feedback; None for none.

    Raises:
        ValueError: a number cannot be packed; the kept residual stays as it was.
        StateError: the kept residual is damaged.
    """
    if not theta:  # the client keeps its adapters
        return ArrayRecord()
    packed: dict[str, Array] = {}
    plain_fisher = fisher
    if fisher is not None and upload.fisher != "float32":
        packed[PACKED + FISHER + upload.fisher] = Array(pack_fisher(fisher).numpy())
        plain_fisher = None
    if upload.adapters == "float32":
        return ArrayRecord({**to_arrays(theta, plain_fisher), **packed})
    keeps = own if upload.error_feedback else None
    kept = (keeps.load(RESIDUAL) if keeps else None) or {}
    start, residual = ({name: s[name] for name in theta if name in s} for s in (sent, kept))
    adapters = pack_adapters(theta, start, upload.adapters, residual or None)
    packed[PACKED + THETA + upload.adapters] = Array(adapters.data.numpy())
    if keeps:
        keeps.save(RESIDUAL, {**kept, **adapters.residual})
    return ArrayRecord({**to_arrays({}, plain_fisher), **packed})


def adapters_in(arrays: ArrayRecord, sent: State) -> State:
    """A reply's adapters, plain or packed; none where it has none.

    Args:
        sent: the adapters that went to the client.

    Raises:
        ValueError: they are there twice, cannot be read, or are not what a client writes.
    """
    key, kind = _packed(arrays, THETA, tuple(BITS))
    if not kind:
        return from_arrays(arrays, THETA)
    return unpack_adapters(to_tensor(arrays, key), sent, kind)


def fishers_in(arrays: ArrayRecord, theta: State) -> State:
    """A reply's Fisher diagonals, plain or packed; none where it has none.

    Args:
        theta: its adapters, which have the same shapes; a client's rank may be its own.

    Raises:
        ValueError: they are there twice, cannot be read, or are not what a client writes.
    """
    key, kind = _packed(arrays, FISHER, ("log4",))
    if not kind:
        return from_arrays(arrays, FISHER)
    return unpack_fisher(to_tensor(arrays, key), shapes_of(theta))


def _packed(arrays: ArrayRecord, prefix: str, kinds: tuple[str, ...]) -> tuple[str, str]:
    """The key of the part that is packed, and how; empty where none is.

    Raises:
        ValueError: an unknown kind, or the part is there twice.
    """
    packed = [key for key in arrays if key.startswith(PACKED + prefix)]
    if not packed:
        return "", ""
    key, kind = packed[0], packed[0].removeprefix(PACKED + prefix)
    if kind not in kinds:
        raise ValueError(f"{key} is no packed part of an update")
    if len(packed) > 1 or any(other.startswith(prefix) for other in arrays):
        raise ValueError(f"{prefix}* is there twice, once as {key}")
    return key, kind


def to_update(reply: Message) -> Update:
    """A train reply as the merging functions take it."""
    arrays = reply.content.array_records["arrays"]
    return Update(
        partition=partition_of(reply),
        theta=from_arrays(arrays),
        fisher=from_arrays(arrays, FISHER) or None,
        num_examples=int(metric(reply, "num-examples")),
    )


def metric(message: Message, key: str) -> float:
    """One number of a reply's metrics.

    Raises:
        ValueError: it is missing, or a list.
    """
    value = message.content.metric_records.get("metrics", MetricRecord()).get(key)
    if value is None or isinstance(value, list):
        what = "missing" if value is None else "a list, not one number"
        raise ValueError(f"metric {key} is {what}")
    return value


def partition_of(reply: Message) -> int:
    """The partition that a reply comes from.

    Raises:
        ValueError: it does not say.
    """
    value = metric(reply, "partition-id")
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"metric partition-id = {value!r}: must be a whole number, 0 or more")
    return value


def failed(message: Message, error: Exception, partition: int | None = None) -> Message:
    """The reply of a client that cannot go on: why, and which client it is where it knows."""
    who = "" if partition is None else f"client {partition}: "
    return Message(Error(CLIENT_FAILED, f"{who}{type(error).__name__}: {error}"), reply_to=message)


def failure_of(reply: Message) -> tuple[int | None, str]:
    """The partition that an error reply is from, None where it does not say, and what went wrong.

    Where Flower wrote it, that is the last line of its traceback.
    """
    reason = (reply.error.reason or "").strip() or "no reason given"
    if reply.error.code != CLIENT_FAILED:
        return None, f"{reason.splitlines()[-1].strip()} (code {reply.error.code})"
    match = re.match(r"client (\d{1,9}): ", reason)
    return (int(match[1]), reason[match.end() :]) if match else (None, reason)


def with_tokens(messages: Iterable[Message], token: Callable[[int], str]) -> list[Message]:
    """Messages to nodes, each with that node's own token and without what is not for clients.

    Flower's strategies give all nodes one content, so each message gets one of its own; arrays are
    not copied.
    """
    sent = list(messages)
    for message in sent:
        records = dict(message.content)
        arrays = message.content.array_records["arrays"]
        if any(key.startswith(AT_LLM) for key in arrays):
            own = {key: arrays[key] for key in arrays if not key.startswith(AT_LLM)}
            records["arrays"] = ArrayRecord(own)
        task = {**message.content.config_records["config"]}
        task["llm-token"] = token(message.metadata.dst_node_id)
        message.content = RecordDict({**records, "config": ConfigRecord(task)})
    return sent


def record_bytes(content: RecordDict) -> int:
    """Bytes of all records of a message's content, as Flower counts them."""
    return sum(record.count_bytes() for record in content.values())
