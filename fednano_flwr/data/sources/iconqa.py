"""IconQA (Lu et al., NeurIPS 2021 Datasets and Benchmarks) as its authors distribute it.

`pid_splits.json` lists ids by "<task>_<split>", `pid2skills.json` skills by id.
Its three tasks: `choose_txt` (options in words), `choose_img` (options are pictures) and
`fill_in_blank` (a short free answer). Each question has one picture of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data.defects import (
    free_answer_defect,
    is_absent,
    picture_choice_defect,
    question_defect,
    text_defect,
)
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import entries, id_order, is_there, read_json_object, split_ids
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources import Reader, Reading, Source, chosen_tasks

DEFECTS = {
    "choose_txt": question_defect,
    "choose_img": picture_choice_defect,
    "fill_in_blank": free_answer_defect,
}
TASKS = tuple(DEFECTS)
NO_DATA_FILE = "no data.json in the question's folder"
UNREADABLE = "data.json cannot be read"
NO_FOLDER = "listed in pid_splits.json but has no folder"
NOT_LISTED = "has a folder but is not listed in pid_splits.json"

LAYOUT = """\
  <dataset.path>/iconqa_data/iconqa/<split>/<task>/<id>/data.json
  <dataset.path>/iconqa_data/iconqa/<split>/<task>/<id>/image.png
  <dataset.path>/iconqa_data/iconqa/<split>/<task>/<id>/choice_<n>.png   (choose_img)
  <dataset.path>/iconqa_data/pid_splits.json   (optional)
  <dataset.path>/iconqa_data/pid2skills.json   (optional)"""


@dataclass(frozen=True)
class IconQA:
    """The questions of some tasks, in order of their ids.

    A question's group is the first skill that `pid2skills.json` lists for it, else its grade and
    task, as in "grade2/choose_txt"; its subject is the first skill, else its task.

    Args:
        root: the folder that holds the splits; see `find_root`.
        tasks: which of `TASKS` to read.
    """

    root: Path
    tasks: tuple[str, ...] = TASKS

    @property
    def settings(self) -> str:
        return ",".join(self.tasks)

    @property
    def _splits_file(self) -> Path:
        return self.root.parent / "pid_splits.json"

    @property
    def _skills_file(self) -> Path:
        return self.root.parent / "pid2skills.json"

    def check_split(self, split: str) -> None:
        for task in self.tasks:
            if not (self._folder(split) / task).is_dir():
                there = [name for name in TASKS if (self._folder(split) / name).is_dir()]
                raise DataError(
                    f"{self._folder(split) / task} is not there. Unpack the dataset again, or set "
                    "dataset.tasks to those of the split that are: "
                    f"{', '.join(there) or 'there is none'}."
                )
        if self._splits_file.is_file():
            self._listed(split)
        elif _is_small(split):
            raise DataError(f"'{split}' is defined by {self._splits_file}, which is not there.")

    def files(self, split: str) -> list[Path]:
        folder = self._folder(split)
        return [self._splits_file, self._skills_file, *(folder / task for task in self.tasks)]

    def read(self, split: str) -> Reading:
        listed = self._listed(split) if self._splits_file.is_file() else {}
        skills = read_json_object(self._skills_file) if self._skills_file.is_file() else {}
        problems: list[tuple[str, str, str | None]] = []  # id, task, reason to leave it out
        for task in self.tasks:
            there = set(_folder_names(self._folder(split) / task))
            wanted = listed.get(task, there)
            problems += [(pid, task, None if pid in there else NO_FOLDER) for pid in wanted]
            if not _is_small(split):
                problems += [(pid, task, NOT_LISTED) for pid in there - wanted]
        problems.sort(key=lambda problem: (id_order(problem[0]), problem[1]))
        return Reading(len(problems), self._problems(split, problems, skills))

    def _problems(
        self, split: str, problems: list[tuple[str, str, str | None]], skills: dict[str, Any]
    ) -> Iterator[tuple[str, Sample | str]]:
        for pid, task, reason in problems:
            folder = self._folder(split) / task / pid
            yield pid, reason or _read_question(folder, task, skills.get(pid))

    def _folder(self, split: str) -> Path:
        """The small splits' questions lie with those of the split they are part of."""
        return self.root / split.removeprefix("mini")

    def _listed(self, split: str) -> dict[str, set[str]]:
        """The ids of each task that belong to the split."""
        return {task: set(split_ids(self._splits_file, f"{task}_{split}")) for task in self.tasks}


def find_root(path: Path) -> Path | None:
    """The folder that holds the splits, from any of the three folders a user may name.

    Args:
        path: the folder that holds `iconqa_data`, or `iconqa_data`, or `iconqa_data/iconqa`.
    """
    for root in (path / "iconqa_data" / "iconqa", path / "iconqa", path):
        if tasks_in(root):
            # The parent must be right for "." too; links are left alone, as they may lead away.
            return Path(os.path.abspath(root))
    return None


def tasks_in(root: Path) -> tuple[str, ...]:
    """The tasks that any split has a folder of."""
    splits = [root / split for split in ("train", "val", "test")]
    return tuple(task for task in TASKS if any((split / task).is_dir() for split in splits))


def _read_question(folder: Path, task: str, skills: Any) -> Sample | str:
    """The sample in `folder`, or the reason why it is left out."""
    file, image = folder / "data.json", folder / "image.png"
    if not is_there(file):
        return NO_DATA_FILE
    try:
        raw = read_json_object(file)
    except DataError:
        return UNREADABLE
    skill: Any = next(iter(skills), None) if isinstance(skills, list) else skills
    defect = DEFECTS[task](raw, "hint", *(("grade",) if is_absent(skill) else ()))
    if defect is None and not is_absent(skill):
        defect = text_defect("skill", skill)
    if defect is not None:
        return defect
    options = [folder / name for name in raw["choices"]] if task == "choose_img" else []
    free = task == "fill_in_blank"
    grade = "no grade" if is_absent(raw.get("grade")) else raw["grade"]
    return Sample(
        uid=folder.name,
        question=raw["question"],
        group=f"{grade}/{task}" if is_absent(skill) else skill,
        subject=task if is_absent(skill) else skill,
        choices=tuple(raw["choices"]) if task == "choose_txt" else (),
        choice_images=tuple(map(Picture, options)),
        answer=None if free else raw["answer"],
        free_answer=raw["answer"] if free else "",
        images=(Picture(image),),
        context="" if is_absent(raw.get("hint")) else raw["hint"],
    )


def _is_small(split: str) -> bool:
    return split.startswith("mini")


def _folder_names(folder: Path) -> list[str]:
    """Names of the folders in `folder`; none where it is not there."""
    if not folder.is_dir():
        return []
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def _open(path: Path, dataset: Dataset) -> Reader | None:
    root = find_root(path)
    if root is None:
        return None
    return IconQA(root, chosen_tasks(dataset, TASKS) or tasks_in(root))


SOURCE = Source(open=_open, layout=LAYOUT, tasks=TASKS)
