"""easy-VQA's questions in German, with pictures told in words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("easy_vqa")
from fednano_demo.real.german import KINDS, german, told_questions, write_german


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    texts = {file.stem: file.read_text("utf-8") for file in folder.glob("*.jsonl")}
    return {
        split: [json.loads(line) for line in text.splitlines()] for split, text in texts.items()
    }


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("what is the teal shape?", "Was ist die türkise Form?"),
        ("what is the color of the circle?", "Was ist die Farbe des Kreises?"),
        ("what color is the shape?", "Welche Farbe hat die Form?"),
        ("what shape does the image contain?", "Welche Form enthält das Bild?"),
        ("is there a circle in the image?", "Gibt es einen Kreis im Bild?"),
        ("is a red shape present?", "Ist eine rote Form vorhanden?"),
        ("is there not a gray shape?", "Gibt es keine graue Form?"),
        ("is no rectangle present?", "Ist kein Rechteck vorhanden?"),
        ("does the image not contain a circle?", "Enthält das Bild keinen Kreis?"),
        ("triangle", "Dreieck"),
        ("no", "nein"),
    ],
)
def test_questions_and_answers_are_put_in_german(english: str, expected: str) -> None:
    assert german(english) == expected


def test_different_questions_stay_different_and_what_is_told_answers_them() -> None:
    questions = told_questions()
    assert len({(one.told, german(one.text)) for one in questions}) == len(questions) > 2000
    for told, text, answer in questions:
        if answer not in ("yes", "no"):
            assert answer in told.split()
            continue
        asked = set(text.rstrip("?").split()) - {"a", "shape"}
        there = bool(asked & set(told.split()))
        assert (answer == "yes") == (there != bool({"no", "not"} & asked)), (told, text, answer)
    with pytest.raises(ValueError, match="no question"):
        german("how many shapes are there?")


def test_the_seed_deals_as_many_questions_of_each_kind_and_none_twice(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        write_german(tmp_path / name, seed)
    one, same, other = (rows(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
    for split, count in (("train", 200), ("val", 48), ("test", 120)):
        assert Counter(r["group"] for r in one[split]) == dict.fromkeys(KINDS, count // len(KINDS))
    asked = [(row["context"], row["question"]) for part in one.values() for row in part]
    assert len(set(asked)) == len(asked) == 368
