"""What a report says of a run, as plain values; other files draw and write it."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.runs import comparable as scored
from fednano_flwr.runs.comparable import Record
from fednano_flwr.runs.results import Run, load_run

NEEDED: dict[str, type | tuple[type, ...]] = {
    "round": int,
    "accuracy": (int, float, type(None)),
    "accuracy_per_client": dict,
    "test_questions_per_client": dict,
    "accuracy_by": dict,
    "train_loss_per_client": dict,
    "train_questions_per_client": dict,
    "round_bytes_up": int,
    "round_bytes_down": int,
    "step_bytes_up": int,
    "step_bytes_down": int,
    "seconds": (int, float),
    "client_seconds": dict,
    "peak_memory_mb": dict,
    "failures": dict,
}
"""What a line of metrics.jsonl has to have for a report."""
PER_CLIENT = (
    "accuracy_per_client",
    "test_questions_per_client",
    "train_loss_per_client",
    "train_questions_per_client",
    "peak_memory_mb",
)
OF_A_KIND = ("accuracy", "questions")


@dataclass(frozen=True)
class Failure:
    """A client that did not answer well.

    Attributes:
        phase: "train" or "evaluate".
        who: as in "client 3".
        reason: as the client or the server gave it.
    """

    round: int
    phase: str
    who: str
    reason: str


@dataclass(frozen=True)
class Setting:
    """A key of the run config.

    Attributes:
        usual: its default.
    """

    key: str
    value: Any
    usual: Any

    @property
    def changed(self) -> bool:
        return bool(self.value != self.usual)


def read_run(path: Path) -> Run:
    """A run that has at least its round 0.

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
    if not isinstance(record, dict):
        return "is no round's record"
    for key, kinds in NEEDED.items():
        if key not in record:
            return f"has no {key}"
        if not isinstance(record[key], kinds):
            return f"has {key} = {str(record[key])[:40]!r}, which is none"
    if record["round"] != number:
        return f"is of round {record['round']}, round {number} is missing"
    for key in PER_CLIENT:
        if not all(_number(value) or value is None for value in record[key].values()):
            return f"has a {key} that is not of numbers"
    for kind, found in record["accuracy_by"].items():
        if not isinstance(found, dict) or not all(map(_number, map(found.get, OF_A_KIND))):
            return f"has no accuracy and number of questions for {kind[:40]!r}"
    spent = record["client_seconds"]
    if not all(_number(spent.get(key)) for key in ("encoder", "waiting_for_llm")) or not all(
        isinstance(spent.get(key), list) and all(map(_number, spent[key]))
        for key in ("train", "evaluate")
    ):
        return "has client_seconds that are not those of a round"
    if not all(isinstance(of_phase, dict) for of_phase in record["failures"].values()):
        return "has failures that are not by client"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _printable(value: Any) -> Any:
    """The same with a replacement mark for what no file or font can take: half characters and
    control characters, which come from other machines."""
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
    return scored.clients(run.rounds)


def whole(run: Run) -> list[Record]:
    """The rounds whose means are compared: all clients scored them, or as many as ever did."""
    return scored.comparable(run.rounds)


def frozen(run: Run) -> Record | None:
    """Round 0, if its means are of the same questions as those of the other whole rounds."""
    first = run.rounds[0]
    return first if first in whole(run) else None


def never_whole(run: Run) -> list[str]:
    """Clients that whole rounds lack: those scored at some time, but never with all the others."""
    everyone = set().union(*map(scored.scorers, run.rounds))
    lacking = everyone - scored.scorers(whole(run)[0])
    return [client for client in clients(run) if client in lacking]


def best(run: Run) -> Record:
    """The earliest of the whole rounds with the best mean accuracy."""
    return scored.best(run.rounds)


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
        for phase, of_phase in record["failures"].items()
        for who, reason in of_phase.items()
    ]


def points(
    run: Run, key: str, client: str | None = None, factor: float = 1.0
) -> tuple[list[int], list[float]]:
    """Rounds and values of a figure, of the rounds that have it.

    Args:
        client: whose, where the record has the figure by client.
        factor: values are multiplied by it.
    """
    found = {
        record["round"]: record[key] if client is None else record[key].get(client)
        for record in run.rounds
    }
    known = {number: value * factor for number, value in found.items() if value is not None}
    return list(known), list(known.values())


def settings(run: Run, usual: Mapping[str, Any]) -> list[Setting]:
    """The whole run config, in the order of its keys.

    Args:
        usual: the defaults.
    """
    return [Setting(key, value, usual.get(key)) for key, value in run.config.flat().items()]


def questions(run: Run, kind: str) -> dict[str, int]:
    """Questions of each client whose number is known, "train" or "test"."""
    known: dict[str, int] = {}
    for record in run.rounds:
        known |= record[f"{kind}_questions_per_client"]
    return {client: known[client] for client in clients(run) if client in known}


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
