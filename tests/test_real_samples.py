"""Whole runs on the real samples of ScienceQA and IconQA, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.runs.summary import kinds_table
from tests import families
from tests.test_rounds import run

KINDS = {
    "scienceqa": ["language science", "natural science", "social science"],
    "iconqa": ["choose_img", "choose_txt", "fill_in_blank"],
}


@pytest.fixture(scope="module")
def instructblip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write("instructblip", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("dataset", "model"),
    [
        ("scienceqa", "llava"),
        pytest.param("iconqa", "instructblip", marks=pytest.mark.slow),
        ("iconqa", "demo"),
    ],
)
def test_a_run_on_a_real_sample_reports_every_kind_of_question(
    run_config: Callable[..., dict[str, Any]],
    sample_data: Path,
    tiny_model: Path,
    instructblip: Path,
    dataset: str,
    model: str,
) -> None:
    names = {"llava": str(tiny_model), "instructblip": str(instructblip)}
    flat = run_config(
        model__name=names.get(model, "package:fednano_demo/model"),
        dataset__name=dataset,
        dataset__path=str(sample_data / dataset),
        dataset__max_skipped=0.7,  # most pictures of the ScienceQA sample are not in it
        dataset__min_partition_size=2,
        num_server_rounds=1,
        local_epochs=1,
    )
    folder = run(flat, clients=2)
    first, last = folder.rounds
    assert not any(record["failures"][phase] for record in (first, last) for phase in ("evaluate",))
    by = last["accuracy_by"]
    assert [kind for kind in by if kind in KINDS[dataset]] == KINDS[dataset]
    asked = sum(last["test_questions_per_client"].values())
    assert by["all"]["questions"] == sum(by[kind]["questions"] for kind in KINDS[dataset]) == asked
    assert last["train_loss"] > 0
    table = kinds_table(first, last, folder.best, "accuracy")
    assert all(kind in table for kind in ("all", "with picture (IMG)", *KINDS[dataset]))
