"""ScienceQA (Lu et al., NeurIPS 2022) as its authors distribute it.

<path>/problems.json                      every question, by id
<path>/pid_splits.json                    ids of `train`, `val`, `test`, …
<path>/images/<split>/<id>/image.png
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import (
    MISSING_PICTURE,
    question_defect,
    read_json_object,
    split_ids,
)
from fednano_flwr.data.sample import QuestionSet, Sample

UNNAMED_PICTURE = "picture is not given as a file name"
NOT_IN_PROBLEMS = "listed in pid_splits.json but not in problems.json"

LAYOUT = """\
  <dataset.path>/problems.json
  <dataset.path>/pid_splits.json
  <dataset.path>/images/<split>/<id>/image.png"""


def load_scienceqa(path: Path) -> QuestionSet:
    """Read the `train` and `test` questions, with or without a picture, in order of their ids.

    A question's group is its `topic`, of which the full set has 26.

    Raises:
        DataError: a file of the layout is missing or malformed.
    """
    problems_file, splits_file = path / "problems.json", path / "pid_splits.json"
    for file in (problems_file, splits_file):
        if not file.is_file():
            raise DataError(
                f"{file} is not there. Set dataset.path to the folder of ScienceQA that looks "
                f"like this:\n{LAYOUT}"
            )
    problems, pid_splits = read_json_object(problems_file), read_json_object(splits_file)

    skipped: Counter[str] = Counter()
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for split, samples in splits.items():
        for pid in split_ids(pid_splits, split, splits_file):
            read = _read_problem(pid, problems.get(pid), path / "images" / split / pid)
            if isinstance(read, Sample):
                samples.append(read)
            else:
                skipped[read] += 1
    return QuestionSet("scienceqa", tuple(splits["train"]), tuple(splits["test"]), skipped)


def _read_problem(pid: str, problem: Any, folder: Path) -> Sample | str:
    """The sample that `problem` describes, or the reason why it is left out."""
    if not isinstance(problem, dict):
        return NOT_IN_PROBLEMS
    defect = question_defect(problem)
    if defect is not None:
        return defect
    name = problem.get("image")
    if name and not isinstance(name, str):
        return UNNAMED_PICTURE
    image = folder / name if name else None
    if image is not None and not image.is_file():
        return MISSING_PICTURE
    return Sample(
        uid=pid,
        question=problem["question"],
        choices=tuple(problem["choices"]),
        answer=problem["answer"],
        group=str(problem.get("topic") or "no topic"),
        image=image,
        context=problem.get("hint") or "",
    )
