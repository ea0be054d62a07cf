"""How a comparison ends, with runs that nobody does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fednano_flwr.analysis.experiments import command
from fednano_flwr.analysis.experiments.plan import Run
from fednano_flwr.analysis.experiments.pool import OnEnd, OnStart
from fednano_flwr.analysis.experiments.store import read
from fednano_flwr.analysis.experiments.worker import Outcome
from fednano_flwr.base.version import code_of
from fednano_flwr.config.project import PACKAGE
from tests.compare.made_up import a_plan, write_run


def test_a_run_that_lacks_a_score_or_fails_is_said_to_have_failed_for_all_that_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "again.toml").write_text('strategy.name = "fedavg"\nedge.feature-dir = "f"')
    plan = a_plan(tmp_path, ["fedavg"], seeds="0..2", others=["again"])

    def run_all(
        runs: Sequence[Run], workers: int, out: Path, on_end: OnEnd, on_start: OnStart
    ) -> None:
        for run in runs:
            write_run(run)
            if run.seed == 1:
                file = run.folder / "metrics.jsonl"
                file.write_text(file.read_text().replace('"1": ', '"7": '))
            on_end(run, Outcome(1.0, "OSError: no room" if run.seed == 2 else None))

    monkeypatch.setattr(command, "run_all", run_all)
    said: list[str] = []
    failed = command._run(plan, plan.distinct, 1, {}, said.append)
    lacks = "round 0 lacks the score of client 1"
    assert {str(run): reason for run, reason in failed.items()} == {
        "fedavg  seed 1": lacks,
        "again  seed 1": lacks,
        "fedavg  seed 2": "OSError: no room",
        "again  seed 2": "OSError: no room",
    }
    assert f"[2/3] fedavg  seed 1: failed: {lacks}" in said[1]


def test_a_run_notes_the_code_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = a_plan(tmp_path, ["fedavg"], seeds="0")

    def run_all(
        runs: Sequence[Run], workers: int, out: Path, on_end: OnEnd, on_start: OnStart
    ) -> None:
        write_run(runs[0])
        on_end(runs[0], Outcome(1.0))

    monkeypatch.setattr(command, "run_all", run_all)
    assert not command._run(plan, plan.distinct, 1, {}, lambda line: None)
    done = read(plan.runs[0])
    assert done is not None and done.environment["code"] == code_of(PACKAGE)
    assert done.environment["commit"] == "abc"


def test_code_is_told_apart_by_its_files_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("x = 1")
    (tmp_path / "notes.txt").write_text("")
    seen = [code_of(tmp_path)]
    (tmp_path / "notes.txt").write_text("no code")
    assert code_of(tmp_path) == seen[0]
    (tmp_path / "sub" / "a.py").write_text("x = 2")
    seen.append(code_of(tmp_path))
    (tmp_path / "sub" / "a.py").rename(tmp_path / "a.py")
    seen.append(code_of(tmp_path))
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    ("overrides", "workers"),
    [((), 7), (("llm.device=cuda",), 1), (("edge.device=cuda:0",), 1)],
)
def test_runs_on_a_gpu_go_one_after_another_unless_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], workers: int
) -> None:
    monkeypatch.setattr(command, "cpus", lambda: 7)
    (tmp_path / "changed.toml").write_text(
        "".join("{} = {!r}\n".format(*pair.split("=")) for pair in overrides)
    )
    plan = a_plan(tmp_path, ["fedavg"], others=["changed"])
    assert command.side_by_side(plan) == workers
