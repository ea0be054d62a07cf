"""Worker processes: which run goes where, and what is left when something goes wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fednano_flwr.analysis.experiments import pool
from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.pool import run_all
from fednano_flwr.analysis.experiments.worker import Outcome
from tests.analysis import idle
from tests.analysis.made_up import a_plan


@pytest.fixture(autouse=True)
def idle_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "work", idle.work)


def test_a_process_that_dies_fails_its_run_and_the_others_go_on(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, ["fedavg", "fednano"], seeds="6..8")
    plan.out.mkdir()
    started: list[PlannedRun] = []
    ended: dict[PlannedRun, Outcome] = {}
    run_all(plan.runs, 1, plan.out, lambda run, how: ended.update({run: how}), started.append)
    assert list(ended) == started == plan.runs
    dead = "its process ended with signal 9"
    errors = [outcome.error for outcome in ended.values()]
    assert errors == [None, None, dead, dead, None, None]
    processes, commits = zip(*(run.log.read_text().split() for run in plan.runs), strict=True)
    assert processes[0] == processes[1] == processes[2] and len(set(processes)) == 3
    assert len(set(commits)) == 1
    assert [path.name for path in plan.out.iterdir()] == ["runs"]


def test_an_interrupt_leaves_no_process_and_no_temporary_file(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, ["fedavg"], seeds="0,9")
    plan.out.mkdir()
    before = set(psutil.Process().children(recursive=True))

    def interrupt(run: PlannedRun, outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(plan.runs, 2, plan.out, interrupt)
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [p for p in left if "resource_tracker" not in " ".join(p.cmdline())]
    assert [path.name for path in plan.out.iterdir()] == ["runs"]


def test_a_worker_goes_on_with_the_data_that_it_has(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, ["fedavg", "fednano"], vary=["dataset.alpha=0.1,1"])
    pending = list(plan.runs)
    first = pool._next(pending, [], None)
    assert first == plan.runs[0]
    same = pool._next(pending, [], first.data)
    assert (same.experiment, same.data) == ("fednano", first.data)
    busy = SimpleNamespace(run=pending[0])
    elsewhere = pool._next(list(pending), [busy], first.data)
    assert elsewhere == pending[2]
