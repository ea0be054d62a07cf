"""`fednano compare` as a user gives it, on a tiny model: real runs in worker processes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from fednano_flwr.analysis import compare as command
from fednano_flwr.analysis.experiments import pool
from fednano_flwr.analysis.experiments.plan import OURS, PlannedRun
from fednano_flwr.analysis.experiments.store import clear, read_finished
from fednano_flwr.analysis.experiments.worker import Outcome, outcome_of
from fednano_flwr.base.version import code_of
from fednano_flwr.cli import app as cli
from fednano_flwr.config import RunConfig
from fednano_flwr.config.project import PACKAGE
from fednano_flwr.in_process import run_in_process
from fednano_flwr.models import bundle
from tests.analysis.made_up import a_plan, write_finished
from tests.conftest import REPOSITORY

Compare = Callable[[str], Result]
Config = Callable[..., dict[str, Any]]
SHORT = {"num_server_rounds": 1, "local_epochs": 1}


@pytest.fixture
def compare(
    run_config: Config, defaults: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Compare:
    """Calls the command in `tmp_path` with a tiny model, one round and one worker."""
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in run_config(**SHORT).items()
        if value != defaults[key] and key not in OURS
    ]
    files = {
        "tiny": "\n".join(lines),
        "fedavg": 'strategy.name = "fedavg"',
        "usual": "",
        "wild": "learning-rate = 1e39",  # more than float32 holds
    }
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)

    def call(arguments: str) -> Result:
        given = f"{arguments} -c tiny.toml --out out --app {REPOSITORY} --workers 1 --clients 2"
        return CliRunner().invoke(cli.cli, ["compare", *given.split()])

    return call


def run_here(
    runs: Sequence[PlannedRun], workers: int, out: Path, on_end: pool.OnEnd, on_start: pool.OnStart
) -> None:
    """In this process, which has imported everything already."""
    for run in runs:
        clear(run)
        on_start(run)
        on_end(run, outcome_of(run, out / "scratch"))


def test_what_is_finished_is_not_run_again_and_what_fails_does_not_end_the_others(
    compare: Compare, tmp_path: Path, run_config: Config
) -> None:
    asked = "fedavg.toml usual.toml --seeds 0,1 --name demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_all", run_here)
        first = compare(asked)
    assert first.exit_code == 0, first.output
    assert "4 runs, 4 to do with 1 worker(s)" in first.output
    folder = tmp_path / "out" / "demo"
    names = "comparison.png results.json rounds.png runs.csv table.csv table.md"
    assert sorted(path.name for path in folder.iterdir()) == names.split()
    results = json.loads((folder / "results.json").read_text())
    assert {"settings", "rows", "paired", "failed", "environment", "command"} <= set(results)
    assert [row["seeds"] for row in results["rows"]] == [[0, 1], [0, 1]]
    assert results["paired"]["usual-vs-fedavg"] == results["paired"]["default-vs-fedavg"]
    runs = list(csv.DictReader((folder / "runs.csv").open()))
    places = [tmp_path / "out" / "runs" / line["folder"] for line in runs]
    last = json.loads((places[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(runs[0]["last"]) == pytest.approx(100 * last["accuracy"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo", "runs"]

    flat = run_config(**SHORT, min_available_nodes=2, strategy__name="fedavg", seed=1)
    again = run_in_process(RunConfig.parse(flat), 2)
    theirs = next(p for p, line in zip(places, runs, strict=True) if line["seed"] == "1")
    adapters = "adapters/last/adapter_model.safetensors"
    ours, other = load_file(again.path / adapters), load_file(theirs / adapters)
    assert all(torch.equal(ours[key], other[key]) for key in ours)

    kept = {place: (place / "metrics.jsonl").stat().st_mtime_ns for place in places}
    shutil.rmtree(places[1])
    second = compare(f"{asked} wild.toml")
    assert second.exit_code == 1, second.output
    assert "6 runs, 3 to do" in second.output
    assert "wild  seed 0: failed: TooFewClientsError: round 1, training: 0 of 2" in second.output
    changed = [p for p in places if (p / "metrics.jsonl").stat().st_mtime_ns != kept[p]]
    assert changed == [places[1]]
    results = json.loads((folder / "results.json").read_text())
    assert [row["seeds"] for row in results["rows"]] == [[0, 1], [0, 1], []]
    assert [failure["run"] for failure in results["failed"]] == ["wild  seed 0", "wild  seed 1"]
    log = places[1].with_name(f"{places[1].name}.log")  # of the run that a process did
    assert "round  1  loss" in log.read_text()


def test_a_dry_run_lists_the_runs_and_writes_and_downloads_nothing(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "check_half", lambda *_, **__: pytest.fail("a download"))
    said = compare("fedavg.toml --seeds 3 --dry-run")
    assert said.exit_code == 0, said.output
    assert "to do     fedavg  seed 3" in said.output and "an unknown time" in said.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('strategy.name = "fednani"', "x.toml: strategy.name = 'fednani'"),
        ('edge.bundle = "nowhere"', "x.toml: "),
        ("bach-size = 1", "x.toml: unknown key bach-size"),
        ("batch-size = 0", "x.toml: batch-size = 0"),
        ("dataset.min-partition-size = 999", "x.toml: dataset.min-partition-size = 999"),
    ],
)
def test_a_config_that_cannot_be_used_ends_it_before_any_run(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.setattr(pool, "Worker", lambda *_: pytest.fail("something was started"))
    (tmp_path / "x.toml").write_text(text)
    said = compare("fedavg.toml x.toml")
    assert said.exit_code == 2
    assert says in said.output and "Traceback" not in said.output
    assert not (tmp_path / "out").exists()


def test_an_interrupt_exits_with_130_and_says_how_to_go_on(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_all", Mock(side_effect=KeyboardInterrupt))
    said = compare("fedavg.toml --seeds 0")
    assert said.exit_code == 130
    assert "the same command goes on from here" in said.output


def test_a_run_that_fails_or_lacks_a_score_fails_for_all_that_share_it_and_others_note_their_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "again.toml").write_text('strategy.name = "fedavg"\nedge.feature-dir = "f"')
    plan = a_plan(tmp_path, ["fedavg"], seeds="0..2", others=["again"])

    def run_all(
        runs: Sequence[PlannedRun], workers: int, out: Path, on_end: pool.OnEnd, _: pool.OnStart
    ) -> None:
        for run in runs:
            write_finished(run)
            if run.seed == 1:
                file = run.folder / "metrics.jsonl"
                file.write_text(file.read_text().replace('"1": ', '"7": '))
            on_end(run, Outcome(1.0, "OSError: no room" if run.seed == 2 else None))

    monkeypatch.setattr(command, "run_all", run_all)
    said: list[str] = []
    failed = command.do_missing(plan, {}, 1, said.append)
    lacks = "round 0 lacks the score of client 1"
    assert {str(run): reason for run, reason in failed.items()} == {
        "fedavg  seed 1": lacks,
        "again  seed 1": lacks,
        "fedavg  seed 2": "OSError: no room",
        "again  seed 2": "OSError: no room",
    }
    assert "[1/3] fedavg  seed 0: 50.0 → 50.0 % (1 s), about 2 s left" in said
    assert f"[2/3] fedavg  seed 1: failed: {lacks}" in said[1]
    done = read_finished(plan.runs[0])
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
    [((), 7), (('llm.device = "cuda"',), 1), (('edge.device = "cuda:0"',), 1)],
)
def test_runs_on_a_gpu_go_one_after_another_unless_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], workers: int
) -> None:
    monkeypatch.setattr(command, "cpus", lambda: 7)
    (tmp_path / "changed.toml").write_text("\n".join(overrides))
    plan = a_plan(tmp_path, ["fedavg"], others=["changed"])
    assert command.side_by_side(plan) == workers
