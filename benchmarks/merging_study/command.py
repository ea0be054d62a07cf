"""The study: what is missing is run and becomes a row, and tables are made of all rows."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.merging_study.demo import write_demo
from benchmarks.merging_study.pictures import write_pictures
from benchmarks.merging_study.places import Places, conf_of, is_valid
from benchmarks.merging_study.plan import FEDAVG, Part, part_of
from benchmarks.merging_study.rows import Cell, Row, row_of
from benchmarks.merging_study.tables import write_page
from benchmarks.study.missing import Say, do_runs
from benchmarks.study.rows import add_row, read_rows
from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.progress import duration
from fednano_flwr.analysis.experiments.store import locked
from fednano_flwr.analysis.experiments.worker import Outcome
from fednano_flwr.config import ConfigError

NO_DROPOUTS = (
    "the run config has no key for clients that drop out; to a merge, a client without a reply is "
    "one that was not drawn"
)


def study(places: Places, parts: Sequence[str], file: Path, workers: int, say: Say) -> list[str]:
    """Do the runs of these parts that have no row; returns what failed or is lacking, with reasons.

    Rates are chosen before the runs that use them. Tables and pictures are made of the valid rows,
    as far as it came.

    Args:
        file: runs.csv.
        workers: processes side by side.
    """
    failed: list[str] = []
    places.out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(places.out):
            for name in parts:
                part = part_of(name, valid_rows(places, file))
                methods, lines = ready(name, part)
                failed += lines
                failed += do_missing(places, part.tuning_cells(methods), file, workers, say)
                cells = part.test_cells(methods, valid_rows(places, file))
                failed += do_missing(places, cells, file, workers, say)
    finally:
        rows = valid_rows(places, file)
        write_page(rows)
        write_pictures(rows)
        write_demo(rows)
    return failed


def ready(name: str, part: Part) -> tuple[list[str], list[str]]:
    """The methods of a part that there are, and a line for each that is not there."""
    there = [method for method in part.methods if conf_of(method)]
    lines = [
        f"{name}  {method}: there is no conf/{method}.toml"
        for method in part.methods
        if method not in there
    ]
    if part.methods == (FEDAVG,):
        lines.append(f"{name}  the other methods follow from the core, which has runs to do")
    return there, lines


def valid_rows(places: Places, file: Path) -> list[Row]:
    """Rows of today's config, questions and model."""
    return [row for row in read_rows(file, Row) if is_valid(places, row)]


def do_missing(
    places: Places, cells: Sequence[Cell], file: Path, workers: int, say: Say
) -> list[str]:
    """Do the runs of these cells that have no row; returns those that failed, with reasons."""
    done = {row.cell for row in valid_rows(places, file)}
    runs: dict[PlannedRun, Cell] = {}
    failed: dict[str, str] = {}
    for cell in cells:
        if cell not in done:
            try:
                runs[places.dealt(cell)] = cell
            except ConfigError as error:
                failed.setdefault(f"{cell.method} {cell.options}", str(error))

    def keep(cell: Cell, run: PlannedRun, outcome: Outcome, commit: str) -> str:
        row = row_of(cell, run, places.digest(run), commit, outcome.seconds)
        add_row(file, row)
        dealt = "" if row.seed == row.dealt_seed else f", dealt by seed {row.dealt_seed}"
        return (
            f"{cell}: {row.rounds[0]:.1f} → {row.accuracy:.1f} %, worst {row.worst_client:.1f} "
            f"({row.seconds:.0f} s{dealt})"
        )

    known = [f"{what}: {why}" for what, why in failed.items()]
    return known + do_runs(runs, workers, places.out, keep, say)


def plan_lines(places: Places, parts: Sequence[str], file: Path, workers: int) -> list[str]:
    """Runs that are left × measured seconds, part by part and method by method.

    Seconds are a mean over runs of the same task and number of clients: of the same method where
    it has some, else of all.
    """
    rows, lines, total, unknown = valid_rows(places, file), list[str](), 0.0, 0
    finished = {row.cell for row in rows}
    for name in parts:
        part = part_of(name, rows)
        methods, absent = ready(name, part)
        lines += absent
        for method, clients in itertools.product(methods, part.rates):
            settings = [setting for setting in part.settings if setting.clients == clients]
            tried = [cell for each in part.tuning(method, clients).values() for cell in each]
            shown = [c for c in part.test_cells((method,), rows) if c.clients == clients]
            done = len(finished.intersection(tried)) + len(finished.intersection(shown))
            left = len(tried) + len(settings) * len(part.shown) * len(part.seeds) - done
            alike = [row for row in rows if (row.task, row.clients) == (part.task, clients)]
            own = [row.seconds for row in alike if row.method == method]
            seconds = own or [row.seconds for row in alike]
            each = f"{statistics.fmean(seconds):.0f} s each" if seconds else "seconds not measured"
            total += left * statistics.fmean(seconds) if seconds else 0
            unknown += 0 if seconds else left
            what = f"{name:<13} {method:<20} {clients:>2} clients"
            lines.append(f"{what}  {done} done, {left} to do, {each}")
        lines += [f"{name}  {NO_DROPOUTS}"] if name == "participation" else []
    without = f", without {unknown} runs whose seconds are not measured" if unknown else ""
    return [*lines, f"{duration(total / workers)} with {workers} worker(s){without}"]
