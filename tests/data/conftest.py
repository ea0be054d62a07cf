import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fednano_flwr.config import Dataset, RunConfig, project
from fednano_flwr.data.defects import sample_defect
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources import Reader

Writer = Callable[..., Path]
DEFAULTS = RunConfig.parse(project.defaults(Path(__file__).parents[2])).dataset


def settings(**changes: Any) -> Dataset:
    """The defaults of `dataset.*`, some changed."""
    return dataclasses.replace(DEFAULTS, **changes)


def read(reader: Reader, split: str = "train") -> tuple[list[Sample], Counter[str]]:
    """The samples of a split, and how many were left out for which reason."""
    problems = (problem for _, problem in reader.read(split).problems)
    found = [(isinstance(one, Sample) and sample_defect(one)) or one for one in problems]
    samples = [problem for problem in found if isinstance(problem, Sample)]
    return samples, Counter(problem for problem in found if isinstance(problem, str))


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), shade).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEDNANO_CACHE", str(folder))
    return folder


@pytest.fixture
def write_hub(tmp_path: Path) -> Writer:
    """Write a copy of the hub's repository: rows a split, as differences from a plain one."""

    def write(**splits: list[dict[str, Any]]) -> Path:
        (tmp_path / "data").mkdir()
        plain = {
            "image": None,
            "question": "Which is it?",
            "choices": ["this", "that"],
            "answer": 1,
            "hint": "",
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "physics",
            "category": "c",
            "skill": "s",
            "lecture": "l",
            "solution": "s",
        }
        picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        schema = pyarrow.schema(
            [
                (name, kind)
                for name, kind in {
                    **dict.fromkeys(plain, pyarrow.string()),
                    "image": picture,
                    "choices": pyarrow.list_(pyarrow.string()),
                    "answer": pyarrow.int8(),
                }.items()
            ]
        )
        for split, rows in splits.items():
            table = pyarrow.Table.from_pylist([plain | row for row in rows], schema)
            pyarrow.parquet.write_table(
                table, tmp_path / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet"
            )
        return tmp_path

    return write


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
        pictures = ["choice_0.png", "choice_1.png"] if task == "choose_img" else []
        for name in pictures:
            write_picture(folder / name)
        if task == "fill_in_blank":
            changes = {"choices": None, "answer": "7", **changes}
        data = {
            "question": "How many?",
            "choices": pictures or ["one", "two"],
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
            "subject": "natural science",
            "topic": "physics",
            "skill": "Tell this from that",
        }
        full = {pid: plain | changes for pid, changes in problems.items()}
        (tmp_path / "problems.json").write_text(json.dumps(full), encoding="utf-8")
        (tmp_path / "pid_splits.json").write_text(json.dumps(splits), encoding="utf-8")
        return tmp_path

    return write
