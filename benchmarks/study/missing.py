"""Runs of a study side by side: each that ends is kept, and one that fails does not end others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.pool import run_all
from fednano_flwr.analysis.experiments.worker import CarryOut, Outcome, outcome_of
from fednano_flwr.base.version import commit_of
from fednano_flwr.config.project import PACKAGE

C = TypeVar("C")
Keep = Callable[[C, PlannedRun, Outcome, str], str]
"""Adds the row of a cell whose run has ended with the commit's code; returns a line about it."""
Say = Callable[[str], None]


def do_runs(
    runs: Mapping[PlannedRun, C],
    workers: int,
    out: Path,
    keep: Keep[C],
    say: Say,
    carry_out: CarryOut = outcome_of,
) -> list[str]:
    """Do the runs of cells; returns those that failed, with reasons.

    Args:
        workers: processes side by side.
        out: folder for temporary files.
        keep: raises OSError or ValueError where a run has left no row.
        say: is told a line a run.
    """
    commit = commit_of(PACKAGE) or ""
    failed: list[str] = []

    def on_end(run: PlannedRun, outcome: Outcome) -> None:
        cell = runs[run]
        try:
            if outcome.error:
                raise ValueError(outcome.error)
            line = keep(cell, run, outcome, commit)
        except (OSError, ValueError) as error:
            failed.append(f"{cell}: {error} (log: {run.log})")
            line = f"failed  {failed[-1]}"
        say(line)

    if runs:
        run_all(list(runs), workers, out, on_end, carry_out=carry_out)
    return failed
