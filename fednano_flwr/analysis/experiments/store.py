"""Runs on disk: which are finished, and what they measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.analysis.experiments.plan import Run
from fednano_flwr.base.lock import FolderLock, LockedError
from fednano_flwr.base.output import OutputError
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.runs.results import read_rounds as _read_rounds
from fednano_flwr.runs.summary import lost_lines

PARTS = {
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "metrics-cut.jsonl",
    "state.json",
    "privacy.jsonl",
    "adapters",
    "checkpoints",
    "tensorboard",
    "wandb",
}


@dataclass(frozen=True)
class Failure:
    """A client that did not answer, or whose reply was refused; the run went on without it.

    Attributes:
        step: `train` or `evaluate`.
        client: as in `client 1`.
    """

    round: int
    step: str
    client: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """A run that is done: the lines of its metrics.jsonl, and its environment.json."""

    run: Run
    records: list[dict[str, Any]]
    environment: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Of all rounds together."""
        return sum(record["seconds"] for record in self.records)

    @property
    def failures(self) -> list[Failure]:
        """Of all rounds, in their order."""
        return [
            Failure(record["round"], step, client, reason)
            for record in self.records
            for step, failed in record.get("failures", {}).items()
            for client, reason in failed.items()
        ]

    @property
    def lacking(self) -> str | None:
        """Which clients' scores round 0 or the last round lacks, or who took no part, and why.

        None where nothing is lacking. Means of other rounds, or of other runs, would be of other
        questions; adapters that a client never trained are not those of the experiment.
        """
        for record in (self.records[0], self.records[-1]):
            scored = record["accuracy_per_client"]
            lacking = [str(k) for k in range(self.run.clients) if str(k) not in scored]
            if lacking:
                number = record["round"]
                failed = record.get("failures", {}).get("evaluate", {})
                reasons = "".join(
                    f"; {first_few(who)}: {reason}" for who, reason in by_reason(failed.items())
                )
                return f"round {number} lacks the score of client {first_few(lacking)}{reasons}"
        return "; ".join(lost_lines(self.records)) or None

    def of_everyone(self, record: dict[str, Any]) -> bool:
        """Whether as many clients scored this round as round 0."""
        return len(record["accuracy_per_client"]) >= len(self.records[0]["accuracy_per_client"])


def read(run: Run) -> Finished | None:
    """The run if all its rounds are there, with every client's part in them (`lacking`)."""
    done = read_rounds(run)
    return None if done is None or done.lacking else done


def read_rounds(run: Run) -> Finished | None:
    """The run if all its rounds are there, whoever is in them; None where it is not at its end."""
    rounds = run.config.num_server_rounds
    try:
        records = _read_rounds(run.folder)
        state = json.loads((run.folder / "state.json").read_text(encoding="utf-8"))
        environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if [record["round"] for record in records] != list(range(rounds + 1)):
        return None
    return Finished(run, records, environment) if state["round"] == rounds else None


def note(run: Run, **values: str) -> None:
    """Add to the run's environment.json, where there is one."""
    file = run.folder / "environment.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        text = json.dumps(known | values, indent=2, ensure_ascii=False) + "\n"
        partial = file.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)


def clear(run: Run) -> None:
    """Make room for a run: remove what an earlier, unfinished one has left.

    Raises:
        OutputError: there is something that no run has written, hidden files apart; or a run
            writes there now.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if run.folder.is_dir():
        foreign = [
            path.name
            for path in run.folder.iterdir()
            if path.stem not in _STEMS and not path.name.startswith(".")
        ]
        if foreign:
            raise OutputError(f"{run.folder} holds {foreign[0]}, which is not of a run; remove it")
        try:
            with FolderLock(run.folder, print):
                shutil.rmtree(run.folder)
        except LockedError as error:
            raise OutputError(f"{error}; wait for it, or give another --out") from None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Within it no other comparison writes to `out`.

    Raises:
        OutputError: one does already.
    """
    try:
        lock = FolderLock(out, print)
    except LockedError:
        raise OutputError(
            f"another `fednano compare` writes to {out}; wait for it, or give another --out"
        ) from None
    with lock:
        yield


_STEMS = {Path(name).stem for name in PARTS}
"""A file may also be there half-written, as `state.partial`."""
