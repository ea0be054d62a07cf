"""`fednano compare`: check everything, run what is missing, write what came out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from fednano_flwr.analysis.experiments.board import Board
from fednano_flwr.analysis.experiments.picture import draw
from fednano_flwr.analysis.experiments.plan import (
    RUNS,
    Asked,
    Plan,
    Run,
    distinct_configs,
    make_plan,
)
from fednano_flwr.analysis.experiments.pool import run_all
from fednano_flwr.analysis.experiments.progress import duration, end_line, plan_lines, seconds_left
from fednano_flwr.analysis.experiments.results import Results, summarize
from fednano_flwr.analysis.experiments.store import Finished, locked, note, read, read_rounds
from fednano_flwr.analysis.experiments.tables import console_table, markdown, runs_csv, table_csv
from fednano_flwr.analysis.experiments.worker import Outcome
from fednano_flwr.base.live import terminal
from fednano_flwr.base.version import code_of
from fednano_flwr.config import ConfigError
from fednano_flwr.config.machine import cpus
from fednano_flwr.config.project import PACKAGE
from fednano_flwr.preflight import read_questions, validate

Say = Callable[[str], None]
INCOMPLETE = "its results are not complete"


def compare(
    app: Path,
    asked: Asked,
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
    plan = make_plan(app, asked, cwd)
    check(plan, weights=not dry_run)
    workers = workers or side_by_side(plan)
    if dry_run:
        finished, left = _look(plan, workers, say)
        for line in plan_lines(plan.distinct, finished):
            say(line)
        return True
    with locked(plan.out):
        finished, left = _look(plan, workers, say)
        failed = _run(plan, left, workers, _recorded(finished), say)
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
    distinct, dealt = list(distinct_configs(plan.runs)), set()
    for run in plan.runs:
        at = f" with {run.setting.label}" if run.setting.label else ""
        unnamed = dataclasses.replace(run.config.run, name="")
        try:
            if run in distinct:
                validate(dataclasses.replace(run.config, run=unnamed), weights)
            if run.data not in dealt:
                read_questions(run.config.dataset, run.seed, run.clients)
        except ConfigError as error:
            raise ConfigError(f"{run.experiment}.toml{at}: {error}") from None
        dealt.add(run.data)


def write(plan: Plan, failed: dict[Run, str], command: str) -> Results:
    """Write tables, results and pictures of what is finished to `out`/`name`."""
    finished = {run: done for run in plan.runs if (done := read(run))}
    results = summarize(plan, finished, failed, command)
    folder = plan.out / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "table.md": markdown(plan, results),
        "table.csv": table_csv(plan, results),
        "runs.csv": runs_csv(list(finished.values())),
        "results.json": json.dumps(results, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    draw(plan, results, finished, folder)
    return results


def _look(plan: Plan, workers: int, say: Say) -> tuple[dict[Run, Finished], list[Run]]:
    """Which runs are finished and which are left, with a word on how long these take."""
    finished = {run: done for run in plan.runs if (done := read(run))}
    left = [run for run in plan.distinct if run not in finished]
    say(
        f"{len(plan.distinct)} runs, {len(left)} to do with {workers} worker(s); runs in "
        f"{plan.out / RUNS}"
    )
    if left:
        say(f"this takes {duration(seconds_left(left, _recorded(finished), workers))}")
    return finished, left


def _recorded(finished: dict[Run, Finished]) -> dict[Run, float]:
    return {run: done.seconds for run, done in finished.items()}


def _run(
    plan: Plan, left: Sequence[Run], workers: int, recorded: dict[Run, float], say: Say
) -> dict[Run, str]:
    """Do the runs that are left, a line for each and a bar; those that failed, and why.

    Experiments that share a failed run have it one each.
    """
    failed: dict[Run, str] = {}
    seconds: dict[Run, float] = {}
    total = len(plan.distinct)
    code = code_of(PACKAGE)  # as of now, as the commit that runs note
    open_runs = list(left)
    expected = seconds_left(open_runs, recorded, workers)
    board = Board(total, total - len(left), expected, say, terminal())

    def on_end(run: Run, outcome: Outcome) -> None:
        open_runs.remove(run)
        note(run, code=code)
        done = None if outcome.error else read(run)
        if done is None:
            failed[run] = reason = _lacking(run) or outcome.error or INCOMPLETE
            outcome = dataclasses.replace(outcome, error=reason)
        else:
            seconds[run] = outcome.seconds
        line = end_line(total - len(open_runs), total, run, outcome, done)
        to_go = seconds_left(open_runs, seconds or recorded, workers)
        if open_runs:
            line += f", {duration(to_go)} left"
        board.over(run, line, to_go)

    if left:
        with board:
            run_all(left, workers, plan.out, on_end, board.started)
    reasons = {run.folder: reason for run, reason in failed.items()}
    return {run: reasons[run.folder] for run in plan.runs if run.folder in reasons}


def _lacking(run: Run) -> str | None:
    """What a run lacks whose rounds are all there; None where they are not, or nothing lacks."""
    done = read_rounds(run)
    return None if done is None else done.lacking
