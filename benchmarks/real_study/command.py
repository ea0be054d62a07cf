"""The study: what is missing is run and becomes a row, and tables are made of all rows."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_study.pages import RUNS, write_page, write_premise
from benchmarks.real_study.plan import (
    SEEDS,
    STAGES,
    Places,
    chosen_rates,
    methods_of,
    test_cells,
    tuning_cells,
)
from benchmarks.real_study.rows import Cell, Row, packed
from benchmarks.real_study.whole import FROZEN, carry_out, notes_of
from benchmarks.study.missing import Say, do_runs
from benchmarks.study.rows import add_row, read_rows
from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.progress import duration
from fednano_flwr.analysis.experiments.results import run_row
from fednano_flwr.analysis.experiments.store import lacking, locked, read_ended
from fednano_flwr.analysis.experiments.worker import Outcome


def study(places: Places, tasks: Sequence[str], file: Path, workers: int, say: Say) -> list[str]:
    """Do the runs of these tasks that have no row; returns those that failed, with reasons.

    Rates are chosen before the runs that use them; rows and tables are written as far as it came.

    Args:
        file: runs.csv, beside which premise.json goes.
        workers: processes side by side.
    """
    failed: list[str] = []
    places.out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(places.out):
            for stage, task in itertools.product(STAGES, tasks):
                cells = [cell for cell in tuning_cells(task) if cell.method in stage]
                failed += do_missing(places, cells, file, workers, say)
                rates = chosen_rates(task, valid_rows(places, cells, file))
                cells = [cell for cell in test_cells(task, rates) if cell.method in stage]
                failed += do_missing(places, cells, file, workers, say)
    finally:
        write_all(file)
    return failed


def write_all(file: Path) -> None:
    """Make premise.json of all rows, and the page's tables where the rows are the page's."""
    rows = read_rows(file, Row)
    write_premise(file.with_name("premise.json"), rows)
    if file == RUNS:
        write_page(rows)


def valid_rows(places: Places, cells: Iterable[Cell], file: Path) -> list[Row]:
    """Rows of these cells that are of today's config, data and model."""
    asked = set(cells)
    return [
        row
        for row in read_rows(file, Row)
        if row.cell in asked and row.digest == places.digest(row.cell)
    ]


def do_missing(
    places: Places, cells: Sequence[Cell], file: Path, workers: int, say: Say
) -> list[str]:
    """Do the runs of these cells that have no row; returns those that failed, with reasons."""
    done = {row.cell for row in valid_rows(places, cells, file)}
    runs = {places.planned(cell): cell for cell in cells if cell not in done}

    def keep(cell: Cell, run: PlannedRun, outcome: Outcome, commit: str) -> str:
        row = row_of(cell, run, places.digest(cell), commit)
        add_row(file, row)
        return line_of(row)

    return do_runs(runs, workers, places.out, keep, say, carry_out)


def row_of(cell: Cell, run: PlannedRun, digest: str, commit: str) -> Row:
    """What a run has left, as a row.

    Raises:
        ValueError: it lacks a client's score.
        OSError: it has left nothing.
    """
    notes = json.loads(notes_of(run).read_text(encoding="utf-8"))
    found = {"digest": digest, "commit": commit, "seconds": notes["seconds"]}
    found |= {"peak_mb": notes["peak_mb"], "train_loss": notes.get("train_loss")}
    if scores := notes.get("scores"):
        found |= of_scores(scores)
        found["frozen"] = found["accuracy"] if cell.method == FROZEN else None
    if (ended := read_ended(run)) is not None:
        if missing := lacking(ended, run.clients):
            raise ValueError(missing)
        known, together = run_row(run, ended), ended.rounds[0]["accuracy_by"]["all"]
        found |= {
            "frozen": 100 * together["accuracy"],
            "questions": together["questions"],
            "accuracy": known["all"],
            "mean_client": known["last"],
            "worst_client": known["worst"],
            "loss": known["test_loss"],
            "train_loss": ended.rounds[-1]["train_loss"],
            **{key: known[key] for key in ("upload_kb_a_round", "step_mb_a_round")},
        }
    return Row(**{**cell._asdict(), "upload_kb_a_round": None, "step_mb_a_round": None, **found})


def of_scores(clients: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """A row's numbers of each question's score, loss and tokens, client by client."""
    shares = [100 * statistics.fmean(value for value, _, _ in one) for one in clients]
    losses = [sum(loss for _, loss, _ in one) / sum(n for _, _, n in one) for one in clients]
    together = [score for one in clients for score in one]
    right, each = packed([value for value, _, _ in together], [x / n for _, x, n in together])
    return {
        "accuracy": 100 * statistics.fmean(value for value, _, _ in together),
        "mean_client": statistics.fmean(shares),
        "worst_client": min(shares),
        "loss": statistics.fmean(losses),
        "questions": len(together),
        "right": right,
        "losses": each,
    }


def line_of(row: Row) -> str:
    """`scienceqa centralized 0.003 seed 10 val: 46.0 → 51.0 %, loss 0.912 (143 s)`."""
    rate = "" if row.rate is None else f" {row.rate:g}"
    before = "" if row.frozen is None else f"{row.frozen:.1f} → "
    return (
        f"{row.task} {row.method}{rate} seed {row.seed} {row.split}: {before}{row.accuracy:.1f} %, "
        f"loss {row.loss:.3f} ({row.seconds:.0f} s)"
    )


def plan_lines(places: Places, tasks: Sequence[str], file: Path, workers: int) -> list[str]:
    """Runs that are left × the mean seconds of the same method's runs, task by task."""
    rows, total, lines = read_rows(file, Row), 0.0, []
    unknown = False
    for task in tasks:
        rates = chosen_rates(task, rows)
        for name, method in methods_of(task).items():
            tuning = [cell for cell in tuning_cells(task) if cell.method == name]
            tested = [cell for cell in test_cells(task, rates) if cell.method == name]
            done = len(valid_rows(places, [*tuning, *tested], file))
            left = len(method.rates) + len(SEEDS) - done
            seconds = [row.seconds for row in rows if (row.task, row.method) == (task, name)]
            each = statistics.fmean(seconds) if seconds else None
            unknown |= bool(left and each is None)
            total += left * (each or 0.0)
            took = "seconds not measured" if each is None else f"{each:.0f} s each"
            lines.append(f"{task:<10} {name:<13} {done} done, {left} to do, {took}")
    without = " without the runs whose seconds are not measured" if unknown else ""
    lines.append(f"{duration(total / workers)} with {workers} worker(s){without}")
    return lines
