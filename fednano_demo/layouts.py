"""Write questions as IconQA and ScienceQA lay them out on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fednano_demo.questions import Question

Splits = dict[str, list[Question]]
_TASK = "choose_txt"  # IconQA's name of questions whose options are text
_GRADE = "grade1"


def _numbered(splits: Splits) -> Iterator[tuple[str, str, Question]]:
    """Every split, problem id (counting through all splits from 1) and question."""
    pid = 0
    for split, questions in splits.items():
        for question in questions:
            pid += 1
            yield split, str(pid), question


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_picture(folder: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(folder / "image.png", compress_level=1)


def write_iconqa(out: Path, splits: Splits) -> None:
    """Write `out`/iconqa_data with one folder a question and the three index files."""
    root = out / "iconqa_data"
    problems: dict[str, dict[str, Any]] = {}
    pids: dict[str, list[str]] = {f"{_TASK}_{split}": [] for split in splits}
    skills: dict[str, list[str]] = {}
    for split, pid, question in _numbered(splits):
        if question.picture is None:
            raise ValueError(f"IconQA has no questions without a picture: {question.text!r}")
        problem = {
            "question": question.text,
            "choices": list(question.choices),
            "answer": question.answer,
            "ques_type": _TASK,
            "grade": _GRADE,
            "label": question.skill,
        }
        folder = root / "iconqa" / split / _TASK / pid
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "data.json", problem)
        _write_picture(folder, question.picture)
        problems[pid] = {**problem, "split": split}
        pids[f"{_TASK}_{split}"].append(pid)
        skills[pid] = [question.skill]
    _write_json(root / "problems.json", problems)
    _write_json(root / "pid_splits.json", pids)
    _write_json(root / "pid2skills.json", skills)


def write_scienceqa(out: Path, splits: Splits) -> None:
    """Write `out` with problems.json, pid_splits.json and one folder a picture."""
    problems: dict[str, dict[str, Any]] = {}
    pids: dict[str, list[str]] = {split: [] for split in splits}
    for split, pid, question in _numbered(splits):
        problems[pid] = {
            "question": question.text,
            "choices": list(question.choices),
            "answer": question.answer,
            "hint": "",
            "image": None if question.picture is None else "image.png",
            "task": "closed choice",
            "grade": _GRADE,
            "subject": "natural science",
            "topic": question.skill,
            "category": question.skill,
            "skill": question.skill,
            "lecture": "",
            "solution": "",
            "split": split,
        }
        pids[split].append(pid)
        if question.picture is not None:
            folder = out / "images" / split / pid
            folder.mkdir(parents=True, exist_ok=True)
            _write_picture(folder, question.picture)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "problems.json", problems)
    _write_json(out / "pid_splits.json", pids)
