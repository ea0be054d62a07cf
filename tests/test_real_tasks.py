"""easy-VQA's questions under shifts."""

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
from fednano_demo.real.easy import KINDS, read_pictures, read_questions
from fednano_demo.real.tasks import SHAPES, TASKS, WHITE, Sizes, german, write_task

SMALL = Sizes(train=60, val=12, test=24)


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("what is the teal shape?", "Was ist die türkise Form?"),
        ("what is the color of the shape?", "Welche Farbe hat die Form?"),
        ("what color is the circle?", "Welche Farbe hat der Kreis?"),
        ("what shape does the image contain?", "Welche Form ist zu sehen?"),
        ("is there a circle in the image?", "Ist ein Kreis zu sehen?"),
        ("is a red shape present?", "Ist eine rote Form zu sehen?"),
        ("is there not a gray shape in the image?", "Ist keine graue Form zu sehen?"),
        ("is no rectangle present?", "Ist kein Rechteck zu sehen?"),
        ("does the image contain a circle?", "Zeigt das Bild einen Kreis?"),
        ("does the image not contain a black shape?", "Zeigt das Bild keine schwarze Form?"),
        ("triangle", "Dreieck"),
        ("no", "nein"),
    ],
)
def test_questions_and_answers_are_put_in_german(english: str, expected: str) -> None:
    assert german(english) == expected


def test_every_question_of_easy_vqa_has_a_german_one_that_keeps_its_answer() -> None:
    asked: dict[tuple[str, int], set[str]] = {}
    for question in read_questions("test"):
        asked.setdefault((german(question.text), question.picture), set()).add(question.answer)
    assert all(len(answers) == 1 for answers in asked.values())
    with pytest.raises(ValueError, match="no question"):
        german("how many shapes are there?")


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_as_many_questions_of_each_kind_and_shares_no_picture(
    task: str, tmp_path: Path
) -> None:
    write_task(tmp_path, task, 0, SMALL)
    pictures: dict[str, set[str]] = {}
    for split, count in SMALL._asdict().items():
        found = rows(tmp_path, split)
        assert Counter(row["subject"] for row in found) == dict.fromkeys(KINDS, count // len(KINDS))
        assert {row["group"] for row in found} <= {*TASKS[task], *KINDS}
        files = [(tmp_path / row["image"]).read_bytes() for row in found]
        pictures[split] = {hashlib.sha256(file).hexdigest() for file in files}
    assert not pictures["train"] & pictures["val"] and not pictures["train"] & pictures["test"]


def test_the_seed_deals_the_questions(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_task(tmp_path / name, "mixture", seed, SMALL)
    one, same, other = (rows(tmp_path / name, "train") for name in ("one", "same", "other"))
    assert one == same != other


def test_a_mixture_has_each_shift_and_says_which(tmp_path: Path) -> None:
    write_task(tmp_path, "mixture", 0, SMALL)
    found = rows(tmp_path, "train")
    by_shift = {name: [row for row in found if row["group"] == name] for name in TASKS["mixture"]}
    assert all(len(part) > 10 for part in by_shift.values())
    english = [row for name in ("renamed", "washed out") for row in by_shift[name]]
    said = [f"{row['question']} {row['answer']}" for row in english]
    assert not any(shape in text for text in said for shape in SHAPES)
    assert any(row["answer"] in ("ja", "nein") for row in by_shift["german"])

    def darkest(row: dict[str, Any]) -> int:
        return int(np.asarray(Image.open(tmp_path / row["image"]).convert("RGB")).min())

    assert min(map(darkest, by_shift["washed out"])) >= int(255 * WHITE) - 1
    assert min(map(darkest, by_shift["renamed"])) < int(255 * WHITE) - 1


def test_pictures_of_the_text_shift_are_easy_vqas_own(tmp_path: Path) -> None:
    write_task(tmp_path, "text", 0, SMALL)
    known = {hashlib.sha256(f.read_bytes()).hexdigest() for f in read_pictures("test").values()}
    for row in rows(tmp_path, "test"):
        assert hashlib.sha256((tmp_path / row["image"]).read_bytes()).hexdigest() in known
