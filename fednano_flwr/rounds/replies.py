"""Checks of train and evaluate replies: records, keys, types and ranges.

A client may reply anything. Every reply is checked before it is merged, summed or shown, so that a
broken one fails only its sender. The merged adapters are checked too, before they are written or
sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fednano_flwr.adapters.llm_part import at_clients, at_llm
from fednano_flwr.adapters.packing import State, shapes_of
from fednano_flwr.adapters.product import DOWN, shapes_at, trained_part
from fednano_flwr.config import Bounds
from fednano_flwr.edge.scoring import ALL, LONGEST_KIND, MOST_KINDS
from fednano_flwr.exchange.at_host import SessionResult
from fednano_flwr.rounds.bounds import check_clipped, check_norms, clipped
from fednano_flwr.rounds.compat import KEY_NORM_BIT
from fednano_flwr.rounds.records import (
    FISHER,
    PACKED,
    SESSION,
    THETA,
    adapters_in,
    fishers_in,
    from_arrays,
    metric,
    to_arrays,
)
from fednano_flwr.runs.checkpoint import Memory

Shapes = Mapping[str, tuple[int, ...]]
COST: Mapping[str, type] = {
    "partition-id": int,
    "num-partitions": int,
    "step-bytes-up": int,
    "step-bytes-down": int,
    "step-calls": int,
    "step-retries": int,
    "llm-seconds": float,
    "encoder-seconds": float,
    "features-encoded": int,
    "features-from-disk": int,
    "seconds": float,
    "peak-memory-mb": float,
    "peak-gpu-memory-mb": float,
}
"""Who replies, and what its work cost."""
TRAIN_METRICS: Mapping[str, type] = {**COST, "num-examples": int, "train-loss": float}
EVALUATE_METRICS: Mapping[str, type] = {
    **COST,
    "num-examples": int,
    "score": float,
    "test-loss": float,
    "test-tokens": int,
    "train-examples": int,
    "cut-examples": int,
}
NOTES = ("skipped", "unreadable", "tally")
LARGEST = torch.finfo(torch.float32).max
"""No metric is above it, so that sums over clients and questions stay finite."""
NO_BOUNDS = Bounds(0, 0, 0)
PARTS = (THETA, FISHER, PACKED + THETA, PACKED + FISHER)


def receive_update(
    reply: Message,
    sent: ArrayRecord,
    fisher: str = "none",
    lower_ranks: bool = False,
    bounds: Bounds = NO_BOUNDS,
    norm_bit: bool = False,
    clip_norm: float = 0.0,
    factor: str = "both",
    result_of: Callable[[int], SessionResult] | None = None,
) -> None:
    """Refuse a train reply that would spoil the merge, and unpack it in place.

    Args:
        reply: as it came; afterwards its arrays are as `to_arrays` writes them.
        sent: the adapters that went to the client.
        fisher: "none" where the strategy asked for no Fisher diagonal.
        lower_ranks: accept adapters of any rank up to that of those sent, one rank for all.
        bounds: on the norms of update and Fisher diagonal; an update may be scaled down in place.
        norm_bit: the client says whether it has clipped its update.
        clip_norm: to which the client has scaled its update down; 0 where it has not.
        factor: which one of each adapter was trained and is here; the other is as it was sent.
        result_of: by a session's number, what it has led to inside the language model, which
            becomes a part of the update; None where nothing is trained there.

    Raises:
        ValueError: a record, an array or a metric is missing, unknown or cannot be read; adapters
            or Fisher diagonals are of another shape or dtype, or not finite; a Fisher value is
            negative, or was not asked for; a norm is above its bound; no question was trained
            on.
    """
    _check_records(reply, {"arrays": ArrayRecord, "metrics": MetricRecord})
    more = {KEY_NORM_BIT: int} if norm_bit else {}
    if result_of is not None:
        more[SESSION] = int
    _check_metrics(reply, {**TRAIN_METRICS, **more})
    if metric(reply, "num-examples") < 1:
        raise ValueError("no question was trained on")
    arrays, start = reply.content.array_records["arrays"], from_arrays(sent)
    trained = trained_part(at_clients(start), factor)
    for key in arrays:
        if not key.startswith(PARTS):
            raise ValueError(f"{key} is no part of an update")
    theta = adapters_in(arrays, trained)
    _check_adapters(theta, trained, lower_ranks)
    diagonals = fishers_in(arrays, theta)
    _check_fishers(diagonals, theta, fisher != "none")
    if result_of is not None:
        inside = result_of(int(metric(reply, SESSION)))
        of_llm, trained = trained_part(inside.theta, factor), trained_part(start, factor)
        own = inside.fisher or {}
        _check_adapters(of_llm, at_llm(trained), lower_ranks=False)
        _check_fishers(own, of_llm, fisher != "none")
        theta, diagonals = {**theta, **of_llm}, {**diagonals, **own}
    check_norms(theta, diagonals, trained, bounds)
    if clip_norm:
        check_clipped(theta, trained, clip_norm)
    if theta and bounds.clip_update_norm:
        theta = clipped(theta, trained, bounds.clip_update_norm)
    reply.content["arrays"] = to_arrays(
        {name: theta.get(name, start[name]) for name in start},
        {name: diagonals[name] for name in start if name in diagonals},
    )


def check_evaluation(reply: Message) -> None:
    """Refuse an evaluate reply that the round's line and tables cannot be made of.

    Raises:
        ValueError: a record, a metric or a note is missing, unknown or cannot be; the score is
            more than the questions, or not that of the tally; a question has no answer's token.
    """
    _check_records(reply, {"metrics": MetricRecord, "notes": ConfigRecord})
    _check_metrics(reply, EVALUATE_METRICS)
    notes = reply.content.config_records["notes"]
    _check_keys("notes", set(notes), set(NOTES))
    if not all(map(_is_count, _note(notes, "skipped").values())):
        raise ValueError("note skipped has a value that is no count")
    if not all(map(_are_ids, _note(notes, "unreadable").values())):
        raise ValueError("note unreadable has a value that is no list of questions' ids")
    if (tokens := metric(reply, "test-tokens")) < metric(reply, "num-examples"):
        raise ValueError(f"test-tokens = {tokens}, and each question has at least one")
    tally = _note(notes, "tally")
    if len(tally) > MOST_KINDS or max(map(len, tally), default=0) > LONGEST_KIND:
        raise ValueError(
            f"note tally has {len(tally)} kinds of questions; at most {MOST_KINDS}, each named by "
            f"at most {LONGEST_KIND} characters"
        )
    if not all(_is_entry(entry) for entry in tally.values()):
        raise ValueError("note tally has an entry that is not the score of so many questions")
    scored = [metric(reply, "score"), metric(reply, "num-examples")]
    if tally.get(ALL, [0, 0]) != scored:
        raise ValueError(f"a score of {scored[0]} in {scored[1]}, in the tally {tally.get(ALL)}")


def check_merge(theta: State, sent: State, memory: Memory) -> None:
    """Refuse what a strategy has made of good replies and no later round could go on from.

    Args:
        theta: the merged adapters; none where the strategy merges none.
        sent: the adapters that went to the clients.
        memory: what the strategy now remembers.

    Raises:
        ValueError: the adapters are of another shape or dtype than those sent; a number of theirs
            or of the memory is not finite.
    """
    if theta:
        _check_adapters(theta, sent, lower_ranks=False)
    for name, layout in memory.layout.items():
        value = layout.get("value")
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"the strategy's {name} is {value}")
    for name, array in memory.arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"the strategy's {name} has values that are infinite or not a number")


def _check_records(reply: Message, expected: Mapping[str, type]) -> None:
    got = {name: type(record) for name, record in reply.content.items()}
    if got != expected:
        raise ValueError(f"the reply has the records {_named(got)}, not {_named(expected)}")


def _named(records: Mapping[str, type]) -> str:
    return ", ".join(f"{name} ({kind.__name__})" for name, kind in sorted(records.items()))


def _check_keys(what: str, got: set[str], expected: set[str]) -> None:
    if got != expected:
        missing, unknown = sorted(expected - got), sorted(got - expected)
        raise ValueError(f"{what}: missing are {missing}, unknown are {unknown}")


def _check_metrics(reply: Message, expected: Mapping[str, type]) -> None:
    """Each one number, 0 or more, whole where it counts something."""
    _check_keys("metrics", set(reply.content.metric_records["metrics"]), set(expected))
    for key, kind in expected.items():
        value = metric(reply, key)
        if not isinstance(value, (int, kind)) or not 0 <= value <= LARGEST:
            whole = "whole " if kind is int else ""
            raise ValueError(f"metric {key} = {value!r}: must be a {whole}number, 0 or more")


def _note(notes: ConfigRecord, key: str) -> dict[str, object]:
    """A note's JSON object."""
    try:
        value = json.loads(str(notes[key]))
        json.dumps(value, ensure_ascii=False).encode()  # half a character could not be printed
    except (ValueError, RecursionError) as error:
        raise ValueError(f"note {key} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"note {key} is no JSON object")
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(uid, str) for uid in value)


def _is_entry(entry: object) -> bool:
    """Whether it is the sum of the scores, each from 0 to 1, of so many questions."""
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    score, asked = entry
    return _is_count(asked) and type(score) in (int, float) and 0 <= score <= asked and asked > 0


def _check_adapters(theta: State, sent: State, lower_ranks: bool) -> None:
    got, expected = shapes_of(theta), shapes_of(sent)
    if got != expected and not (lower_ranks and _at_a_lower_rank(got, expected)):
        or_less = " or a lower rank" if lower_ranks else ""
        raise ValueError(f"adapters have shapes {got}, asked for {expected}{or_less}")
    _check_numbers(THETA, theta)


def _check_fishers(diagonals: State, theta: State, asked_for: bool) -> None:
    if asked_for and theta and not diagonals:
        raise ValueError("the Fisher diagonals are missing")
    if not asked_for and diagonals:
        raise ValueError("there are Fisher diagonals, which nobody asked for")
    got, expected = shapes_of(diagonals), shapes_of(theta)
    if asked_for and got != expected:
        raise ValueError(f"Fisher diagonals have shapes {got}, the adapters {expected}")
    _check_numbers(FISHER, diagonals)
    for name, value in diagonals.items():
        if (value < 0).any():
            raise ValueError(f"{FISHER}{name} has negative values")


def _check_numbers(prefix: str, state: State) -> None:
    for name, value in state.items():
        if value.dtype != torch.float32:
            raise ValueError(f"{prefix}{name} is of {value.dtype}, not torch.float32")
        if not torch.isfinite(value).all():
            raise ValueError(f"{prefix}{name} has values that are infinite or not a number")


def _at_a_lower_rank(got: Shapes, sent: Shapes) -> bool:
    ranks = [shape[0] for name, shape in sent.items() if name.endswith(DOWN)]
    return any(got == shapes_at(sent, rank) for rank in range(1, min(ranks, default=1)))
