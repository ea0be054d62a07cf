"""IconQA (Lu et al., NeurIPS 2021 Datasets and Benchmarks) as its authors distribute it.

    iconqa_data/iconqa/<split>/<task>/<id>/data.json, image.png
    iconqa_data/pid_splits.json               optional: ids by "<task>_<split>"
    iconqa_data/pid2skills.json               optional: skills by id

Of its three tasks, `choose_txt` is read: one picture, a question, options in words.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import (
    MISSING_PICTURE,
    id_order,
    question_defect,
    read_json_object,
    split_ids,
)
from fednano_flwr.data.sample import QuestionSet, Sample

TASK = "choose_txt"
UNREAD_TASKS = {
    "choose_img": "choose_img: each option is a picture of its own",
    "fill_in_blank": "fill_in_blank: the answer is free text, with no options",
}
NO_DATA_FILE = "no data.json in the question's folder"
NO_FOLDER = "listed in pid_splits.json but has no folder"
NOT_LISTED = "has a folder but is not listed in pid_splits.json"

LAYOUT = """\
  <dataset.path>/iconqa_data/iconqa/<split>/choose_txt/<id>/data.json
  <dataset.path>/iconqa_data/iconqa/<split>/choose_txt/<id>/image.png
  <dataset.path>/iconqa_data/pid_splits.json   (optional)
  <dataset.path>/iconqa_data/pid2skills.json   (optional)"""


def load_iconqa(path: Path) -> QuestionSet:
    """Read the `train` and `test` questions of task `choose_txt`, in order of their ids.

    A question's group is the first skill that `pid2skills.json` lists for it; where it lists none,
    its grade and task, as in "grade2 choose_txt".

    Args:
        path: the folder that holds `iconqa_data`, or `iconqa_data`, or `iconqa_data/iconqa`.

    Raises:
        DataError: the layout is not found, or a JSON file in it is malformed.
    """
    root = _find_root(path)
    skills_file, splits_file = root.parent / "pid2skills.json", root.parent / "pid_splits.json"
    skills = read_json_object(skills_file) if skills_file.is_file() else {}
    pid_splits = read_json_object(splits_file) if splits_file.is_file() else None

    skipped: Counter[str] = Counter()
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for split, samples in splits.items():
        for task, reason in UNREAD_TASKS.items():
            skipped[reason] += len(_folder_names(root / split / task))
        pids = _folder_names(root / split / TASK)
        if pid_splits is not None:
            listed = set(split_ids(pid_splits, f"{TASK}_{split}", splits_file))
            skipped[NO_FOLDER] += len(listed.difference(pids))
            skipped[NOT_LISTED] += len(set(pids) - listed)
            pids = [pid for pid in pids if pid in listed]
        for pid in pids:
            read = _read_question(root / split / TASK / pid, skills.get(pid))
            if isinstance(read, Sample):
                samples.append(read)
            else:
                skipped[read] += 1
    return QuestionSet("iconqa", tuple(splits["train"]), tuple(splits["test"]), +skipped)


def _read_question(folder: Path, skills: Any) -> Sample | str:
    """The sample in `folder`, or the reason why it is left out."""
    file, image = folder / "data.json", folder / "image.png"
    if not file.is_file():
        return NO_DATA_FILE
    raw = read_json_object(file)
    defect = question_defect(raw)
    if defect is not None:
        return defect
    if not image.is_file():
        return MISSING_PICTURE
    return Sample(
        uid=folder.name,
        question=raw["question"],
        choices=tuple(raw["choices"]),
        answer=raw["answer"],
        group=_group(raw, skills),
        image=image,
        context=raw.get("hint") or "",
    )


def _group(raw: dict[str, Any], skills: Any) -> str:
    if isinstance(skills, list) and skills:
        return str(skills[0])
    return f"{raw.get('grade') or 'no grade'} {TASK}"


def _find_root(path: Path) -> Path:
    """The folder that holds the splits, from any of the three folders a user may name."""
    for root in (path / "iconqa_data" / "iconqa", path / "iconqa", path):
        if (root / "train").is_dir():
            # The parent must be right for "." too; links are left alone, as they may lead away.
            return Path(os.path.abspath(root))
    raise DataError(
        f"No IconQA questions in {path}. Set dataset.path to the folder that looks like this:\n"
        f"{LAYOUT}"
    )


def _folder_names(folder: Path) -> list[str]:
    """Names of the folders in `folder`, in `id_order`; none where it is not there."""
    if not folder.is_dir():
        return []
    return sorted((entry.name for entry in folder.iterdir() if entry.is_dir()), key=id_order)
