"""ScienceQA (Lu et al., NeurIPS 2022) as its authors distribute it.

<path>/problems.json                      every question, by id
<path>/pid_splits.json                    ids of `train`, `val`, `test`, `minitest`, …
<path>/images/<split>/<id>/image.png
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import (
    MISSING_PICTURE,
    TWICE,
    UNNAMED_PICTURE,
    Reading,
    files_below,
    is_absent,
    is_file_name,
    is_there,
    question_defect,
    read_json_object,
    split_ids,
)
from fednano_flwr.data.sample import Picture, Sample

NOT_IN_PROBLEMS = "listed in pid_splits.json but not in problems.json"
TWO_PROBLEMS = "id is used for two problems in problems.json"
NO_PROBLEM = "problem is not a JSON object"
OPTIONAL = ("hint", "subject", "topic")

LAYOUT = """\
  <dataset.path>/problems.json
  <dataset.path>/pid_splits.json
  <dataset.path>/images/<split>/<id>/image.png"""


@dataclass(frozen=True)
class ScienceQA:
    """The questions in a folder, with or without a picture, in order of their ids.

    A question's group is its `topic`, of which the full set has 26; its subject is its `subject`.

    Args:
        root: the folder with the two JSON files.
    """

    name: ClassVar[str] = "scienceqa"
    revision: ClassVar[str] = ""
    root: Path

    @property
    def place(self) -> str:
        return str(self.root)

    @property
    def _splits_file(self) -> Path:
        return self.root / "pid_splits.json"

    def check_split(self, split: str) -> None:
        """Raises: DataError: the folder has no such split, or a file is missing or malformed."""
        for file in (self.root / "problems.json", self._splits_file):
            if not file.is_file():
                raise DataError(
                    f"{file} is not there. Set dataset.path to the folder of ScienceQA that looks "
                    f"like this:\n{LAYOUT}"
                )
        split_ids(read_json_object(self._splits_file), split, self._splits_file)

    def identity(self, split: str) -> Iterator[str]:
        yield from files_below(self.root / "problems.json")
        yield from files_below(self._splits_file)
        yield from files_below(self._pictures(split))

    def read(self, split: str) -> Reading:
        problems = read_json_object(self.root / "problems.json")
        pids = split_ids(read_json_object(self._splits_file), split, self._splits_file)
        folder = self._pictures(split)
        return Reading(
            len(pids), ((pid, _read_problem(pid, problems.get(pid), folder)) for pid in pids)
        )

    def _pictures(self, split: str) -> Path:
        """The small splits' pictures lie with those of the split they are part of."""
        return self.root / "images" / split.removeprefix("mini")


def is_copy(folder: Path) -> bool:
    """Whether the folder looks like a copy of what the authors distribute."""
    return any((folder / name).exists() for name in ("problems.json", "pid_splits.json"))


def _read_problem(pid: str, problem: Any, pictures: Path) -> Sample | str:
    """The sample that `problem` describes, or the reason why it is left out."""
    if problem is None:
        return NOT_IN_PROBLEMS
    if not isinstance(problem, dict):
        return TWO_PROBLEMS if problem is TWICE else NO_PROBLEM
    defect = question_defect(problem, *OPTIONAL)
    if defect is not None:
        return defect
    name = problem.get("image")
    if is_absent(name):
        return make_sample(pid, problem, None)
    if not is_file_name(name) or not is_file_name(pid):
        return UNNAMED_PICTURE
    file = pictures / pid / name
    return make_sample(pid, problem, Picture(file)) if is_there(file) else MISSING_PICTURE


def make_sample(uid: str, problem: dict[str, Any], image: Picture | None) -> Sample:
    """A sound problem as a sample; the authors' files and the hub's rows name its fields alike."""
    given = {name: problem[name] for name in OPTIONAL if not is_absent(problem.get(name))}
    return Sample(
        uid=uid,
        question=problem["question"],
        group=given.get("topic", "no topic"),
        subject=given.get("subject", "no subject"),
        choices=tuple(problem["choices"]),
        answer=problem["answer"],
        image=image,
        context=given.get("hint", ""),
    )
