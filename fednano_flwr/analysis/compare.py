"""`fednano compare`: check everything, run what is missing, write what came out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fednano_flwr.analysis.experiments.plan import RUNS, CompareOptions, Plan, PlannedRun, make_plan
from fednano_flwr.analysis.experiments.pool import run_all
from fednano_flwr.analysis.experiments.progress import (
    Progress,
    duration,
    end_line,
    plan_lines,
    seconds_left,
)
from fednano_flwr.analysis.experiments.results import Finished, Results, grouped, summarize
from fednano_flwr.analysis.experiments.store import (
    lacking,
    locked,
    note,
    read_ended,
    read_finished,
)
from fednano_flwr.analysis.experiments.tables import console_table, markdown, runs_csv, table_csv
from fednano_flwr.analysis.experiments.worker import Outcome
from fednano_flwr.analysis.figures.comparison import curves_by_setting, intervals
from fednano_flwr.base.live import terminal
from fednano_flwr.base.version import code_of
from fednano_flwr.config import ConfigError
from fednano_flwr.config.machine import cpus
from fednano_flwr.config.project import PACKAGE
from fednano_flwr.preflight import read_questions, validate
from fednano_flwr.runs.results import Run

Say = Callable[[str], None]
INCOMPLETE = "its results are not complete"


def compare(
    app: Path,
    options: CompareOptions,
    cwd: Path,
    workers: int | None,
    dry_run: bool,
    command: str,
    say: Say,
) -> bool:
    """Run the comparison and write its tables; True where no run failed.

    Args:
        workers: processes; None for as many as `side_by_side` says.
        dry_run: only say what there is to do.

    Raises:
        ConfigError: something cannot be used; nothing has run.
        OutputError: `--out` cannot be written.
        KeyboardInterrupt: nothing is left running, and finished runs are kept.
    """
    plan = make_plan(app, options, cwd)
    check(plan, weights=not dry_run)
    workers = workers or side_by_side(plan)
    if dry_run:
        finished = _finished(plan)
        _say_what_is_left(plan, finished, workers, say)
        for line in plan_lines(plan.distinct, finished):
            say(line)
        return True
    with locked(plan.out):
        finished = _finished(plan)
        _say_what_is_left(plan, finished, workers, say)
        failed = do_missing(plan, finished, workers, say)
        results = write(plan, failed, command)
    say("")
    say(console_table(plan, results))
    say(f"written to {plan.out / plan.name}")
    return not failed


def side_by_side(plan: Plan) -> int:
    """One a CPU; one where any run computes elsewhere: each holds a language model of its own."""
    devices = {
        device for run in plan.runs for device in (run.config.llm.device, run.config.edge.device)
    }
    return cpus() if devices == {"cpu"} else 1


def check(plan: Plan, weights: bool = True) -> None:
    """Check models, data, its dealing and strategies of all runs, before any of them starts.

    Args:
        weights: as in `validate`.

    Raises:
        ConfigError: names the experiment and the key.
    """
    checked: set[Any] = set()
    for run in plan.runs:
        unnamed = dataclasses.replace(run.config.run, name="")
        try:
            if run.digest not in checked:
                validate(dataclasses.replace(run.config, run=unnamed), weights)
            if run.data not in checked:
                read_questions(run.config.dataset, run.seed, run.clients)
        except ConfigError as error:
            at = f" with {run.setting.label}" if run.setting.label else ""
            raise ConfigError(f"{run.experiment}.toml{at}: {error}") from None
        checked |= {run.digest, run.data}


def do_missing(plan: Plan, finished: Finished, workers: int, say: Say) -> dict[PlannedRun, str]:
    """Do the runs that are not finished, a line for each and a bar; those that failed, and why.

    Experiments that share a failed run have it one each.
    """
    missing = [run for run in plan.distinct if run not in finished]
    seconds: dict[PlannedRun, float] = {}
    reasons: dict[Path, str] = {}
    total, open_runs = len(plan.distinct), list(missing)
    code = code_of(PACKAGE)  # as of now, as the commit that runs note
    expected = seconds_left(missing, _recorded(finished), workers)

    def on_end(run: PlannedRun, outcome: Outcome) -> None:
        open_runs.remove(run)
        note(run, code=code)
        done = None if outcome.error else read_finished(run)
        if done is None:
            ended = read_ended(run)
            error = (ended and lacking(ended, run.clients)) or outcome.error or INCOMPLETE
            outcome, reasons[run.folder] = dataclasses.replace(outcome, error=error), error
        else:
            seconds[run] = outcome.seconds
        line = end_line(total - len(open_runs), total, run, outcome, done)
        left = seconds_left(open_runs, seconds or _recorded(finished), workers)
        progress.ended(run, f"{line}, {duration(left)} left" if open_runs else line, left)

    if missing:
        with Progress(total, total - len(missing), expected, say, terminal()) as progress:
            run_all(missing, workers, plan.out, on_end, progress.started)
    return {run: reasons[run.folder] for run in plan.runs if run.folder in reasons}


def write(plan: Plan, failed: dict[PlannedRun, str], command: str) -> Results:
    """Write tables, results and pictures of what is finished to `out`/`name`."""
    finished = _finished(plan)
    results = summarize(plan, finished, failed, command)
    folder = plan.out / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "table.md": markdown(plan, results),
        "table.csv": table_csv(plan, results),
        "runs.csv": runs_csv(finished),
        "results.json": json.dumps(results, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    clients = f"{plan.runs[0].clients} clients"
    settings = {
        f"{setting.label.replace(',', ', ')}, {clients}" if setting.label else clients: groups
        for setting, groups in grouped(plan, finished).items()
    }
    intervals(settings, plan.baseline).savefig(folder / "comparison.png", dpi=150)
    curves_by_setting(settings).savefig(folder / "rounds.png", dpi=150)
    return results


def _finished(plan: Plan) -> dict[PlannedRun, Run]:
    return {run: done for run in plan.runs if (done := read_finished(run))}


def _say_what_is_left(plan: Plan, finished: Finished, workers: int, say: Say) -> None:
    left = [run for run in plan.distinct if run not in finished]
    say(
        f"{len(plan.distinct)} runs, {len(left)} to do with {workers} worker(s); runs in "
        f"{plan.out / RUNS}"
    )
    if left:
        say(f"this takes {duration(seconds_left(left, _recorded(finished), workers))}")


def _recorded(finished: Finished) -> dict[PlannedRun, float]:
    """Seconds of each run's rounds together."""
    return {run: sum(r["seconds"] for r in done.rounds) for run, done in finished.items()}
