"""Which runs on disk count as finished, and so are not run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fednano_flwr.analysis.experiments.plan import Run
from fednano_flwr.analysis.experiments.store import read, read_rounds
from tests.compare.made_up import a_plan, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of a folder with all its rounds."""
    one = a_plan(tmp_path, ["fedavg"], seeds="0").runs[0]
    write_run(one)
    return one


def test_a_run_with_all_its_rounds_is_finished(run: Run) -> None:
    done = read(run)
    assert done is not None
    assert len(done.records) == run.config.num_server_rounds + 1 and done.failures == []
    assert done.environment == {"commit": "abc", "packages": {"torch": "2"}}


def drop_last_line(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))


def cut_last_line(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-9])


def put_state_back(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "round": state["round"] - 1}))


def drop_environment(folder: Path) -> None:
    (folder / "environment.json").unlink()


@pytest.mark.parametrize(
    "damage", [drop_last_line, cut_last_line, put_state_back, drop_environment]
)
def test_a_run_that_lacks_something_is_not_finished(
    run: Run, damage: Callable[[Path], None]
) -> None:
    damage(run.folder)
    assert read(run) is None and read_rounds(run) is None


def test_a_run_that_a_client_never_trained_in_is_not_finished_and_says_why(run: Run) -> None:
    file = run.folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records[1:]:
        record["train_loss_per_client"] = {"1": 0.5}
        record["failures"] = {"train": {"client 0": "no such token"}, "evaluate": {}}
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read(run) is None
    whole = read_rounds(run)
    assert whole is not None and whole.lacking is not None
    assert "client 0 took no part in the training of any round: no such" in whole.lacking


@pytest.mark.parametrize("number", [0, -1])
def test_a_run_without_a_clients_first_or_last_score_is_not_finished_and_says_why(
    run: Run, number: int
) -> None:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    del records[number]["accuracy_per_client"]["1"]
    records[number]["failures"] = {"train": {}, "evaluate": {"client 1": "out of memory"}}
    text = "\n".join(json.dumps(record) for record in records)
    (run.folder / "metrics.jsonl").write_text(f"{text}\n")
    assert read(run) is None
    whole = read_rounds(run)
    assert whole is not None
    which = records[number]["round"]
    lacks = f"round {which} lacks the score of client 1; client 1: out of memory"
    assert whole.lacking == lacks
