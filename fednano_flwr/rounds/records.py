"""Adapter states in Flower's records: the keys are `theta.NAME` and `fisher.NAME`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from fednano_flwr.adapters.update import Update

THETA, FISHER = "theta.", "fisher."
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
    """Messages to nodes, each with that node's own token; what they hold is not copied.

    Flower's strategies give all nodes one content, so each message gets one of its own.
    """
    sent = list(messages)
    for message in sent:
        records = dict(message.content)
        task = {**message.content.config_records["config"]}
        task["llm-token"] = token(message.metadata.dst_node_id)
        message.content = RecordDict({**records, "config": ConfigRecord(task)})
    return sent


def record_bytes(content: RecordDict) -> int:
    """Bytes of all records of a message's content, as Flower counts them."""
    return sum(record.count_bytes() for record in content.values())
