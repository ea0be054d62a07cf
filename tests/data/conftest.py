import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Writer = Callable[..., Path]


@pytest.fixture
def write_picture(tmp_path: Path) -> Writer:
    def write(path: Path, color: Any = (200, 30, 30), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (4, 3), color).save(path)
        return path

    return write


@pytest.fixture
def write_iconqa(tmp_path: Path, write_picture: Writer) -> Writer:
    """Write one IconQA question; a key given as None is left out. Returns its folder."""

    def write(split: str, pid: str, task: str = "choose_txt", **changes: Any) -> Path:
        folder = tmp_path / "iconqa_data" / "iconqa" / split / task / pid
        write_picture(folder / "image.png")
        data = {
            "question": "How many?",
            "choices": ["one", "two"],
            "answer": 1,
            "ques_type": task,
            "grade": "grade2",
            "label": "U7",
        }
        data = {key: value for key, value in (data | changes).items() if value is not None}
        (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def write_scienceqa(tmp_path: Path, write_picture: Writer) -> Writer:
    """Write a whole ScienceQA folder: `problems` maps an id to what differs from a plain one."""

    def write(problems: dict[str, dict[str, Any]], **splits: list[Any]) -> Path:
        plain = {
            "question": "Which is it?",
            "choices": ["this", "that", "neither"],
            "answer": 2,
            "hint": "",
            "image": None,
            "topic": "physics",
            "skill": "Tell this from that",
        }
        full = {pid: plain | changes for pid, changes in problems.items()}
        (tmp_path / "problems.json").write_text(json.dumps(full), encoding="utf-8")
        (tmp_path / "pid_splits.json").write_text(json.dumps(splits), encoding="utf-8")
        return tmp_path

    return write
