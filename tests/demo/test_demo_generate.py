import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fednano_demo.generate import write_dataset
from fednano_demo.skills import IMAGE_SKILLS, TEXT_SKILLS

SIZES = {"train": 60, "val": 15, "test": 30}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    write_dataset(out, **SIZES)
    return out


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_seed_writes_the_same_bytes(dataset, tmp_path):
    write_dataset(tmp_path, **SIZES)
    assert fingerprint(dataset) == fingerprint(tmp_path)


def test_another_seed_writes_other_questions(dataset, tmp_path):
    write_dataset(tmp_path, **SIZES, seed=1)
    name = "scienceqa/problems.json"
    assert (dataset / name).read_bytes() != (tmp_path / name).read_bytes()


def test_scienceqa_layout_is_complete(dataset):
    root = dataset / "scienceqa"
    problems = json.loads((root / "problems.json").read_text())
    splits = json.loads((root / "pid_splits.json").read_text())
    assert {split: len(pids) for split, pids in splits.items()} == SIZES
    assert sorted(problems) == sorted(pid for pids in splits.values() for pid in pids)
    assert {p["skill"] for p in problems.values()} == {*IMAGE_SKILLS, *TEXT_SKILLS}
    for split, pids in splits.items():
        for pid in pids:
            problem = problems[pid]
            assert problem["split"] == split
            assert 2 <= len(problem["choices"]) <= 4
            assert 0 <= problem["answer"] < len(problem["choices"])
            assert problem["topic"] == problem["skill"]
            picture = root / "images" / split / pid / "image.png"
            assert picture.exists() == (problem["image"] == "image.png")
            assert (problem["image"] is None) == (problem["skill"] in TEXT_SKILLS)


def test_iconqa_layout_is_complete(dataset):
    root = dataset / "iconqa" / "iconqa_data"
    problems, splits, skills = (
        json.loads((root / f"{name}.json").read_text())
        for name in ("problems", "pid_splits", "pid2skills")
    )
    assert set(splits) == {f"choose_txt_{split}" for split in SIZES}
    assert {skill for names in skills.values() for skill in names} == set(IMAGE_SKILLS)
    for split, size in SIZES.items():
        pids = splits[f"choose_txt_{split}"]
        assert len(pids) == size
        for pid in pids:
            folder = root / "iconqa" / split / "choose_txt" / pid
            data = json.loads((folder / "data.json").read_text())
            assert problems[pid] == {**data, "split": split}
            assert data["ques_type"] == "choose_txt"
            assert Image.open(folder / "image.png").size == (48, 48)


def test_no_question_occurs_twice(dataset):
    root = dataset / "scienceqa"
    seen = set()
    for pid, problem in json.loads((root / "problems.json").read_text()).items():
        picture = b""
        if problem["image"]:
            path = root / "images" / problem["split"] / pid / "image.png"
            picture = np.asarray(Image.open(path)).tobytes()
        key = (problem["question"], tuple(problem["choices"]), picture)
        assert key not in seen
        seen.add(key)
