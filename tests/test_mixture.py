"""easy-VQA's questions under shifts that clients have in different shares."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("easy_vqa")
from fednano_demo.real.easy import KINDS
from fednano_demo.real.german import SHAPES
from fednano_demo.real.mixture import SHIFTS, WHITE, Sizes, write_mixture

SMALL = Sizes(train=60, val=12, test=24)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    write_mixture(folder, 0, SMALL)
    return folder


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_splits_have_as_many_questions_of_each_kind_and_share_no_picture(written: Path) -> None:
    pictures: dict[str, set[str]] = {}
    for split, count in SMALL._asdict().items():
        found = rows(written, split)
        assert Counter(row["subject"] for row in found) == dict.fromkeys(KINDS, count // len(KINDS))
        assert {row["group"] for row in found} == set(SHIFTS)
        files = [(written / row["image"]).read_bytes() for row in found]
        pictures[split] = {hashlib.sha256(file).hexdigest() for file in files}
    assert not pictures["train"] & pictures["val"] and not pictures["train"] & pictures["test"]


def test_the_seed_draws_the_questions(written: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        write_mixture(tmp_path / name, seed, SMALL)
    assert rows(written, "train") == rows(tmp_path / "same", "train")
    assert rows(written, "train") != rows(tmp_path / "other", "train")


def test_each_question_has_the_shift_that_it_names(written: Path) -> None:
    by_shift = {name: [r for r in rows(written, "train") if r["group"] == name] for name in SHIFTS}
    assert all(len(part) > 10 for part in by_shift.values())
    english = [row for name in ("renamed", "washed out") for row in by_shift[name]]
    said = [f"{row['question']} {row['answer']}" for row in english]
    assert not any(shape in text for text in said for shape in SHAPES)
    assert any(row["answer"] in ("ja", "nein") for row in by_shift["german"])

    def darkest(row: dict[str, Any]) -> int:
        return int(np.asarray(Image.open(written / row["image"]).convert("RGB")).min())

    assert min(map(darkest, by_shift["washed out"])) >= int(255 * WHITE) - 1
    assert min(map(darkest, by_shift["renamed"])) < int(255 * WHITE) - 1
