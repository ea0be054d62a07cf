"""What a report says about a run, as plain values."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.runs import comparable as rounds
from fednano_flwr.runs.comparable import Record
from fednano_flwr.runs.results import Run, load_run


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _has_numbers(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(_is_number(value.get(key)) for key in keys)


def _by_client(value: Any) -> bool:
    return isinstance(value, dict) and all(v is None or _is_number(v) for v in value.values())


def _lists(value: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(value.get(k), list) and all(map(_is_number, value[k])) for k in keys)


def _of_dicts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())


NEEDED: dict[str, Callable[[Any], bool]] = {
    "accuracy": lambda value: value is None or _is_number(value),
    "accuracy_per_client": _by_client,
    "test_questions_per_client": _by_client,
    "train_loss_per_client": _by_client,
    "train_questions_per_client": _by_client,
    "peak_memory_mb": _by_client,
    "accuracy_by": lambda value: (
        _of_dicts(value)
        and all(_has_numbers(kind, "accuracy", "questions") for kind in value.values())
    ),
    **{f"{kind}_bytes_{way}": _is_number for kind in ("round", "step") for way in ("up", "down")},
    "seconds": _is_number,
    "client_seconds": lambda value: (
        _has_numbers(value, "encoder", "waiting_for_llm") and _lists(value, "train", "evaluate")
    ),
    "failures": _of_dicts,
}
"""What a report needs of a line of metrics.jsonl: keys, and what their values have to be."""
SINCE = {
    "test_loss": lambda value: value is None or _is_number(value),
    "test_loss_per_client": _by_client,
}
"""What an older run's lines lack."""


@dataclass(frozen=True)
class Failure:
    """A client that did not answer, or whose reply was refused; the run went on without it.

    Attributes:
        phase: "train" or "evaluate".
        who: as in "client 3".
        reason: as the client or the server gave it.
    """

    round: int
    phase: str
    who: str
    reason: str


def read_run(path: Path) -> Run:
    """A run that has at least its round 0, with text that every file and font can take.

    Raises:
        ConfigError: there is none in `path`, or a line of its metrics is not what a run writes.
    """
    run = load_run(path)
    if not run.rounds:
        raise ConfigError(f"{path}: metrics.jsonl is empty, the run has not come to round 0")
    run = dataclasses.replace(
        run,
        config=RunConfig.parse(_printable(run.config.flat())),
        rounds=_printable(run.rounds),
        environment=_printable(run.environment),
        notes=tuple(map(_printable, run.notes)),
    )
    if not isinstance(run.environment, dict):
        raise ConfigError(f"{path}: environment.json is no object")
    for number, record in enumerate(run.rounds):
        if problem := _problem(record, number):
            raise ConfigError(f"{path}: line {number + 1} of metrics.jsonl {problem}")
    return run


def _problem(record: Any, number: int) -> str:
    """What is wrong with a round's line; "" where nothing is."""
    if not isinstance(record, dict) or "round" not in record:
        return "is no round's record"
    if record["round"] != number:
        return f"is of round {record['round']}, round {number} is missing"
    for key, fits in (NEEDED | SINCE).items():
        if key not in record and key in NEEDED:
            return f"has no {key}"
        if key in record and not fits(record[key]):
            return f"has {key} = {str(record[key])[:60]}, which no run writes"
    return ""


def _printable(value: Any) -> Any:
    """Replace half characters and control characters, which come from other machines."""
    if isinstance(value, str):
        return "".join(
            c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd"
            for c in value
        )
    if isinstance(value, dict):
        return {_printable(key): _printable(one) for key, one in value.items()}
    return [_printable(one) for one in value] if isinstance(value, list) else value


def clients(run: Run) -> list[str]:
    """All partitions that have trained or been scored in any round, in their order."""
    return rounds.clients(run.rounds)


def comparable(run: Run) -> list[Record]:
    """The rounds whose means are of the same questions: those that the most clients rounds."""
    return rounds.comparable(run.rounds)


def frozen(run: Run) -> Record | None:
    """Round 0, if it is one of the comparable rounds."""
    first = run.rounds[0]
    return first if first in comparable(run) else None


def uncompared_clients(run: Run) -> list[str]:
    """Clients that were scored, but in no comparable round."""
    everyone = set().union(*map(rounds.scorers, run.rounds))
    lacking = everyone - rounds.scorers(comparable(run)[0])
    return [client for client in clients(run) if client in lacking]


def rounds_done(run: Run) -> int:
    """Rounds of training that there are results of."""
    return len(run.rounds) - 1


def complete(run: Run) -> bool:
    return rounds_done(run) >= run.config.num_server_rounds


def failures(run: Run) -> list[Failure]:
    """Of all rounds, in their order."""
    return [
        Failure(record["round"], phase, str(who), str(reason))
        for record in run.rounds
        for phase, of_phase in record.get("failures", {}).items()
        for who, reason in of_phase.items()
    ]


def questions(run: Run, kind: str) -> dict[str, int]:
    """Questions of each client whose number is known, "train" or "test"."""
    known: dict[str, int] = {}
    for record in run.rounds:
        known |= record[f"{kind}_questions_per_client"]
    return {client: known[client] for client in clients(run) if client in known}
