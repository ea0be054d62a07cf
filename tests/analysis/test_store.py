"""Which runs on disk count as finished, and so are not run again; which make room for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.store import (
    clear,
    lacking,
    locked,
    read_ended,
    read_finished,
)
from fednano_flwr.base.output import OutputError
from tests.analysis.made_up import ENVIRONMENT, a_plan, finish, write_finished

Damage = Callable[[Path], object]
LOST: dict[str, Any] = {"train_loss_per_client": {"1": 0.5, "2": 0.5}}
"""A round in which client 0 did not train."""


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    """Of a folder with all its rounds."""
    one = a_plan(tmp_path, ["fedavg"], seeds="0").runs[0]
    write_finished(one)
    return one


def cut(folder: Path, length: int) -> None:
    file = folder / "metrics.jsonl"
    file.write_text(file.read_text()[:length])


def test_a_run_with_all_its_rounds_is_finished(run: PlannedRun) -> None:
    done = read_finished(run)
    assert done is not None and done.environment == ENVIRONMENT
    assert len(done.rounds) == run.config.num_server_rounds + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder, (folder / "metrics.jsonl").read_text().index("\n") + 1),
        lambda folder: cut(folder, -9),
        lambda folder: (folder / "state.json").write_text('{"round": 0}'),
        lambda folder: (folder / "environment.json").unlink(),
    ],
)
def test_a_run_that_lacks_a_part_is_not_finished(run: PlannedRun, damage: Damage) -> None:
    damage(run.folder)
    assert read_finished(run) is None and read_ended(run) is None


def test_a_run_that_cannot_be_read_is_not_taken_for_one_that_can_be_removed(
    run: PlannedRun,
) -> None:
    (run.folder / "metrics.jsonl").unlink()
    (run.folder / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        read_finished(run)


def test_a_run_that_a_client_never_trained_in_lacks_it(run: PlannedRun) -> None:
    done = finish(run)
    for record in done.rounds[1:]:
        record |= LOST | {"failures": {"train": {"client 0": "no such token"}, "evaluate": {}}}
    said = lacking(done, run.clients)
    assert "client 0 took no part in the training of any round: no such" in said


@pytest.mark.parametrize("number", [0, -1])
def test_a_run_without_a_clients_first_or_last_score_lacks_it(run: PlannedRun, number: int) -> None:
    file = run.folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    del records[number]["accuracy_per_client"]["1"]
    records[number]["failures"] = {"train": {}, "evaluate": {"client 1": "out of memory"}}
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    ended = read_ended(run)
    assert read_finished(run) is None and ended is not None
    which = records[number]["round"]
    lacks = f"round {which} lacks the score of client 1; client 1: out of memory"
    assert lacking(ended, run.clients) == lacks


def test_an_unfinished_run_makes_room_and_a_foreign_folder_does_not(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, ["fedavg"], seeds="0..1")
    ours, foreign = (run.folder for run in plan.runs)
    (ours / "adapters" / "last").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "state.partial", ".DS_Store"):
        (ours / name).write_text("{}")
    clear(plan.runs[0])
    assert not ours.exists()
    foreign.mkdir()
    (foreign / "thesis.pdf").write_text("")
    with pytest.raises(OutputError, match=r"thesis\.pdf"):
        clear(plan.runs[1])
    assert (foreign / "thesis.pdf").exists()


def test_two_comparisons_do_not_write_to_one_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "out"), pytest.raises(OutputError, match="fednano compare"):
            locked(tmp_path / "out").__enter__()
