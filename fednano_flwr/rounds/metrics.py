"""One line of metrics.jsonl: what a round did, from the clients' replies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

import psutil
from flwr.app import Message

from fednano_flwr.edge.client import peak_gpu_memory_mb, peak_memory_mb
from fednano_flwr.edge.scoring import merged
from fednano_flwr.rounds.federation import RoundReplies
from fednano_flwr.rounds.records import SCORE, TEST_LOSS, metric, partition_of


def round_record(
    server_round: int,
    trained: RoundReplies | None,
    evaluated: RoundReplies,
    seconds: float,
    notes: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything a round measured.

    `accuracy` is the mean score by the run's metric, the plain mean over clients that have test
    questions, `accuracy_by` that of all clients' questions of a kind or subject together;
    `test_loss` the plain mean over clients of −log p per token of the right answers; bytes count
    what crossed in this round,
    training and evaluation together, step traffic apart from round traffic. Memory is resident, in
    MiB: at its peak since the process began, and of the server also now, at the round's end.

    Args:
        trained: replies to the train messages; None for round 0, which only evaluates.
        evaluated: replies to the evaluate messages.
        seconds: wall-clock time of the round.
        notes: what the strategy saw in the merge; one that is not finite, such as the ratio to a
            client whose Fisher diagonal is zero, is left out: JSON has no such numbers.
    """
    accuracies = {str(partition_of(r)): _ratio(r, *SCORE) for r in evaluated.replies}
    test_losses = {str(partition_of(r)): _ratio(r, *TEST_LOSS) for r in evaluated.replies}
    training = trained.replies if trained else []
    losses = {str(partition_of(r)): metric(r, "train-loss") for r in training}
    sizes = {str(partition_of(r)): int(metric(r, "num-examples")) for r in training}
    both = [trained, evaluated] if trained else [evaluated]
    replies = [reply for answers in both for reply in answers.replies]
    return {
        "round": server_round,
        "accuracy": _mean(accuracies),
        "accuracy_per_client": accuracies,
        "test_questions_per_client": {
            str(partition_of(r)): int(metric(r, "num-examples")) for r in evaluated.replies
        },
        "accuracy_by": _by_kind(evaluated.replies),
        "test_loss": _mean(test_losses),
        "test_loss_per_client": test_losses,
        "train_loss": _weighted_mean(losses, sizes),
        "train_loss_per_client": losses,
        "train_questions_per_client": sizes,
        "round_bytes_up": sum(answers.bytes_up for answers in both),
        "round_bytes_down": sum(answers.bytes_down for answers in both),
        "step_bytes_up": _total(replies, "step-bytes-up"),
        "step_bytes_down": _total(replies, "step-bytes-down"),
        "step_calls": _total(replies, "step-calls"),
        "step_retries": _total(replies, "step-retries"),
        "merge": {key: value for key, value in (notes or {}).items() if isfinite(value)},
        "features": {
            "encoded": _total(replies, "features-encoded"),
            "from_disk": _total(replies, "features-from-disk"),
        },
        "seconds": seconds,
        "client_seconds": {
            "train": [metric(r, "seconds") for r in training],
            "evaluate": [metric(r, "seconds") for r in evaluated.replies],
            "encoder": sum(metric(r, "encoder-seconds") for r in replies),
            "waiting_for_llm": sum(metric(r, "llm-seconds") for r in replies),
        },
        "peak_memory_mb": {
            "client_process": max(metric(r, "peak-memory-mb") for r in replies),
            "server_process": peak_memory_mb(),
            "client_gpu": max(metric(r, "peak-gpu-memory-mb") for r in replies),
            "server_gpu": peak_gpu_memory_mb(),
        },
        "memory_mb": {"server_process": psutil.Process().memory_info().rss / 2**20},
        "failures": {
            "train": trained.failures if trained else {},
            "evaluate": evaluated.failures,
        },
    }


def _by_kind(replies: list[Message]) -> dict[str, dict[str, float]]:
    """Mean score with and without pictures and by subject, over the questions of all clients."""
    tallies = [json.loads(str(r.content.config_records["notes"]["tally"])) for r in replies]
    return {
        kind: {"accuracy": score / asked, "questions": asked}
        for kind, (score, asked) in merged(tallies).items()
    }


def _ratio(reply: Message, total: str, count: str) -> float | None:
    """A mean over a client's test questions; None where it has none."""
    number = metric(reply, count)
    return metric(reply, total) / number if number else None


def _mean(values: dict[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None


def _weighted_mean(values: dict[str, float], weights: dict[str, int]) -> float | None:
    total = sum(weights.values())
    return sum(values[key] * weights[key] for key in values) / total if total else None


def _total(replies: list[Message], key: str) -> int:
    return sum(int(metric(reply, key)) for reply in replies)
