"""Adapter states in Flower's records: the keys are `theta.NAME` and `fisher.NAME`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from torch import Tensor

from fednano_flwr.product import DOWN, shapes_at
from fednano_flwr.strategies.merge import Update

Shapes = Mapping[str, tuple[int, ...]]
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
    """The tensors under one prefix, by their names without it."""
    return {
        key.removeprefix(prefix): torch.from_numpy(array.numpy().copy())
        for key, array in record.items()
        if key.startswith(prefix)
    }


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
    """One number of a reply's metrics."""
    value = message.content.metric_records["metrics"][key]
    if isinstance(value, list):
        raise ValueError(f"metric {key} is a list, not one number")
    return value


def partition_of(reply: Message) -> int:
    """The partition that a good reply comes from."""
    return int(metric(reply, "partition-id"))


def record_bytes(content: RecordDict) -> int:
    """Bytes of all records of a message's content, as Flower counts them."""
    return sum(record.count_bytes() for record in content.values())


def check_update(
    reply: Message, sent: ArrayRecord, fisher: bool = False, lower_ranks: bool = False
) -> None:
    """Refuse an update that would spoil the merge.

    Args:
        fisher: whether the strategy asked for Fisher diagonals.
        lower_ranks: accept adapters of any rank up to that of those sent, one rank for all.

    Raises:
        ValueError: parameters or Fisher diagonals are missing, of another shape, or not finite; a
            Fisher value is negative; no question was trained on.
    """
    expected = {key: tuple(array.shape) for key, array in sent.items()}
    arrays = reply.content.array_records["arrays"]
    got = {key: tuple(array.shape) for key, array in arrays.items() if key.startswith(THETA)}
    if got != expected and not (lower_ranks and _at_a_lower_rank(got, expected)):
        or_less = " or a lower rank" if lower_ranks else ""
        raise ValueError(f"adapters have shapes {got}, asked for {expected}{or_less}")
    fishers = {
        THETA + key.removeprefix(FISHER): tuple(array.shape)
        for key, array in arrays.items()
        if key.startswith(FISHER)
    }
    if (fisher or fishers) and fishers != got:
        raise ValueError(f"Fisher diagonals have shapes {fishers}, the adapters {got}")
    for key, array in arrays.items():
        values = torch.from_numpy(array.numpy().copy())
        if not torch.isfinite(values).all():
            raise ValueError(f"{key} has values that are infinite or not a number")
        if key.startswith(FISHER) and (values < 0).any():
            raise ValueError(f"{key} has negative values")
    if metric(reply, "num-examples") < 1:
        raise ValueError("no question was trained on")


def _at_a_lower_rank(got: Shapes, sent: Shapes) -> bool:
    ranks = [shape[0] for name, shape in sent.items() if name.endswith(DOWN)]
    return any(got == shapes_at(sent, rank) for rank in range(1, min(ranks, default=1)))
