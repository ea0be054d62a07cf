"""Planned runs on disk: which are finished, and room for the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.base.files import replace_file
from fednano_flwr.base.lock import FolderLock, LockedError
from fednano_flwr.base.output import OutputError
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.runs.results import Run, load_run
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
"""What a run writes; a file may also be there half written, as `state.partial`."""


def read_finished(run: PlannedRun) -> Run | None:
    """The run if all its rounds are there and it lacks no client."""
    found = read_ended(run)
    return None if found is None or lacking(found, run.clients) else found


def read_ended(run: PlannedRun) -> Run | None:
    """The run if all its rounds are there, whoever took part in them.

    Raises:
        OSError: a file is there and cannot be read.
    """
    try:
        found = load_run(run.folder)
        state = json.loads((run.folder / "state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        cause = error.__context__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise cause from None
        return None
    rounds = run.config.num_server_rounds
    whole = [record["round"] for record in found.rounds] == list(range(rounds + 1))
    return found if whole and state["round"] == rounds else None


def lacking(run: Run, clients: int) -> str:
    """Which clients' scores round 0 or the last round lacks, or who took no part, and why.

    "" where nothing is lacking. Means of other rounds, or of other runs, would be of other
    questions; adapters that a client never trained are not those of the experiment.

    Args:
        clients: number of clients that there should be.
    """
    for record in (run.rounds[0], run.rounds[-1]):
        unscored = [str(k) for k in range(clients) if str(k) not in record["accuracy_per_client"]]
        if unscored:
            failed = record.get("failures", {}).get("evaluate", {})
            reasons = "".join(
                f"; {first_few(who)}: {why}" for who, why in by_reason(failed.items())
            )
            who = first_few(unscored)
            return f"round {record['round']} lacks the score of client {who}{reasons}"
    return "; ".join(lost_lines(run.rounds))


def note(run: PlannedRun, **values: str) -> None:
    """Add to the run's environment.json, where there is one."""
    file = run.folder / "environment.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        text = json.dumps(known | values, indent=2, ensure_ascii=False) + "\n"
        replace_file(file, text.encode())


def clear(run: PlannedRun) -> None:
    """Make room for a run: remove what an earlier, unfinished one has left.

    Raises:
        OutputError: there is something that no run has written, hidden files apart; or a run
            writes there now.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if not run.folder.is_dir():
        return
    stems = {Path(name).stem for name in PARTS}
    for path in run.folder.iterdir():
        if path.stem not in stems and not path.name.startswith("."):
            raise OutputError(f"{run.folder} holds {path.name}, which is not of a run; remove it")
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
