from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fednano_flwr.config import Dataset
from tests.fuzz import files


@pytest.fixture
def folders(
    tiny_model: Path,
    tiny_questions: Path,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, files.Folder]:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dataset = dataclasses.replace(tiny_dataset, path=str(tmp_path / "questions"), max_skipped=1.0)
    return files.folders(tiny_model, tiny_questions, dataset, tmp_path)
