"""A run whose questions have free answers only: its metric and its loss, wherever it is shown."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.analysis.report import report
from fednano_flwr.config import ConfigError, Dataset, RunConfig
from fednano_flwr.data import sources
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources import Reading, Source
from fednano_flwr.in_process import run_in_process
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.runs.results import load_run


@dataclass(frozen=True)
class Captions:
    """Descriptions of five words; the frozen model gives none of them."""

    settings: str = ""

    def check_split(self, split: str) -> None: ...

    def files(self, split: str) -> list[Path]:
        return []

    def read(self, split: str) -> Reading:
        return Reading(24, self._samples(split))

    def _samples(self, split: str) -> Iterator[tuple[str, Sample]]:
        for number in range(24):
            words = [f"w{20 + (number + step) % 30}" for step in range(5)]
            uid, group = f"{split}-{number}", f"g{number % 2}"
            yield uid, Sample(uid, words[0], group, group, free_answer=" ".join(words))


@pytest.fixture(scope="module")
def captions() -> Iterator[None]:
    def opened(path: Path, dataset: Dataset) -> Captions:
        return Captions()

    sources.register("captions", Source(opened, "nothing"))
    yield
    del sources._registered["captions"]


@pytest.fixture
def play(
    captions: None, run_config: Callable[..., dict[str, Any]]
) -> Callable[..., tuple[RunFolder, str]]:
    """Play a run of two clients; its folder, and what it said."""

    def run(**changes: Any) -> tuple[RunFolder, str]:
        usual = {"dataset__name": "captions", "num_server_rounds": 1, "learning_rate": 0.02}
        flat = run_config(**{**usual, "local_epochs": 1, **changes})
        with redirect_stdout(io.StringIO()) as said:
            folder = run_in_process(RunConfig.parse(flat), clients=2)
        return folder, said.getvalue()

    return run


def test_the_metric_and_the_loss_are_in_lines_tables_records_and_the_report(play) -> None:
    folder, said = play(dataset__metric="f1")
    frozen, tuned = folder.rounds
    assert set(tuned["test_loss_per_client"]) == {"0", "1"}
    assert tuned["test_loss"] == pytest.approx(sum(tuned["test_loss_per_client"].values()) / 2)
    assert 0 < tuned["test_loss"] < frozen["test_loss"]
    assert tuned["accuracy_by"]["free answer"]["questions"] == 24
    lines = [line for line in said.splitlines() if "| round " in line]
    for line, record in zip(lines, folder.rounds, strict=True):
        assert f"test loss {record['test_loss']:7.3f}  token F1 " in line
    assert "accuracy" not in said and "Token F1 against the frozen model" in said
    assert f"{frozen['test_loss']:.3f} → {tuned['test_loss']:.3f}" in said
    (page,) = report([folder.path], None)
    text = page.read_text(encoding="utf-8")
    assert "Token F1 by round" in text and "Token F1 by client" in text
    assert f"{frozen['test_loss']:.3f} → {tuned['test_loss']:.3f}" in text
    assert (page.parent / "figures" / "test_loss.svg").is_file()


def test_of_rounds_that_no_answer_is_right_in_the_one_with_the_least_loss_is_the_best(play) -> None:
    folder, said = play()
    assert [record["accuracy"] for record in folder.rounds] == [0, 0]
    assert folder.best["round"] == 1 and "accuracy" in said


def test_a_metric_that_scores_nothing_is_said(play) -> None:
    vqa = {"dataset__metric": "vqa", "num_server_rounds": 0}
    _, said = play(dataset__name="scienceqa", run__name="closed", **vqa)
    assert "dataset.metric = 'vqa' scores free answers, and no test question has one" in said
    _, said = play(**vqa)
    assert "no test question has one" not in said


@pytest.mark.slow
def test_runs_by_different_metrics_are_not_compared_and_named(play, tmp_path: Path) -> None:
    names = {"auto": "a", "exact": "b", "rouge-l": "c"}
    folders = {
        metric: play(dataset__metric=metric, run__name=name, num_server_rounds=0)[0].path
        for metric, name in names.items()
    }
    report([folders["auto"], folders["exact"]], tmp_path / "same")
    with pytest.raises(ConfigError, match=r"dataset\.metric.*accuracy: a.*ROUGE-L: c"):
        report([folders["auto"], folders["rouge-l"]], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_without_losses_of_tests_is_read_and_shown(play) -> None:
    """As versions before this one wrote them."""
    folder, _ = play(num_server_rounds=1)
    file = folder.path / "metrics.jsonl"
    older = []
    for line in file.read_text().splitlines():
        record = json.loads(line)
        del record["test_loss"], record["test_loss_per_client"]
        older.append(json.dumps(record))
    file.write_text("\n".join(older) + "\n")
    config = json.loads((folder.path / "config.json").read_text())
    del config["dataset.metric"]
    (folder.path / "config.json").write_text(json.dumps(config))
    assert load_run(folder.path).config.dataset.metric == "auto"
    (page,) = report([folder.path], None)
    assert "Test loss by round: not drawn" in page.read_text(encoding="utf-8")
