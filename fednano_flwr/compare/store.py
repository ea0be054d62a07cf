"""Runs on disk: which are finished, and what they measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.compare.plan import Run
from fednano_flwr.output import OutputError

PARTS = {"config.json", "environment.json", "metrics.jsonl", "state.json", "adapters"}


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


def read(run: Run) -> Finished | None:
    """The run if all its rounds are there, None where it is not finished."""
    rounds = run.config.num_server_rounds
    try:
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        state = json.loads((run.folder / "state.json").read_text(encoding="utf-8"))
        environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if [record["round"] for record in records] != list(range(rounds + 1)):
        return None
    return Finished(run, records, environment) if state["round"] == rounds else None


def clear(run: Run) -> None:
    """Make room for a run: remove what an earlier, unfinished one has left.

    Raises:
        OutputError: there is something that no run has written.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if run.folder.is_dir():
        foreign = [path.name for path in run.folder.iterdir() if path.stem not in _STEMS]
        if foreign:
            raise OutputError(f"{run.folder} holds {foreign[0]}, which is not of a run; remove it")
        shutil.rmtree(run.folder)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Within it no other comparison writes to `out`.

    Raises:
        OutputError: one does already.
    """
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another `fednano compare` writes to {out}; wait for it, or give another --out"
            ) from None
        yield


_STEMS = {Path(name).stem for name in PARTS}
"""A file may also be there half-written, as `state.partial`."""
