"""A run whose data set is on the hub, at one of its commits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from fednano_flwr.analysis.facts import read_run
from fednano_flwr.analysis.pages import dataset_of
from fednano_flwr.ask.opening import settings_of
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.sources.scienceqa import HUB_ID
from fednano_flwr.export.command import export
from fednano_flwr.in_process import run_in_process
from fednano_flwr.runs.results import load_run
from tests.files import hub_cache

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cached(tiny_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, offline, with the tiny questions as two commits of the data set."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    problems = json.loads((tiny_questions / "problems.json").read_text())
    (tmp_path / "copy" / "data").mkdir(parents=True)
    for split, ids in json.loads((tiny_questions / "pid_splits.json").read_text()).items():
        rows = []
        for pid in ids:
            name = problems[pid]["image"]
            file = tiny_questions / "images" / split / pid / str(name)
            rows.append(problems[pid] | {"image": {"bytes": file.read_bytes()} if name else None})
        file = tmp_path / "copy" / "data" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    commits = {OLD: tmp_path / "copy", NEW: tmp_path / "copy"}
    return hub_cache(tmp_path / "hub", HUB_ID, commits, "datasets", main=NEW, v1=OLD)


def test_a_run_records_the_data_sets_commit_and_all_that_is_made_of_it_has_it(
    cached: Path, run_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    flat = run_config(dataset__path=HUB_ID, dataset__revision="v1", num_server_rounds=1)
    folder = run_in_process(RunConfig.parse(flat), clients=2).path
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["dataset_revision"] == OLD and environment["model_revision"] == ""

    export(folder, "peft", "last", tmp_path / "out", "", None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{HUB_ID}, revision {OLD}" in card
    assert f"{HUB_ID}, revision {OLD[:12]}" in dataset_of(read_run(folder))

    (cached / "refs" / "v1").write_text(NEW)  # the branch moves on
    asked = settings_of(load_run(folder), []).dataset
    assert load_questions(asked).revision == OLD
    elsewhere = settings_of(load_run(folder), [f"dataset.path={tmp_path}"]).dataset
    assert (elsewhere.path, elsewhere.revision) == (str(tmp_path), "")

    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    shutil.rmtree(folder / "checkpoints" / "round-00001")
    with pytest.raises(ConfigError, match=f"{OLD}.*{NEW}"):
        run_in_process(RunConfig.parse({**flat, "resume": "auto"}), clients=2)
