"""ScienceQA (Lu et al., NeurIPS 2022), as its authors distribute it and as the hub has it.

`problems.json` has every question by id, `pid_splits.json` the ids of `train`, `val`, `test`,
`minitest`, …; the hub's parquet files have their pictures inside the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data import parquet
from fednano_flwr.data.defects import (
    MISSING_PICTURE,
    UNNAMED_PICTURE,
    is_absent,
    is_file_name,
    question_defect,
)
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import TWICE, names_in, read_json_object, split_ids
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources import Reader, Reading, Source

HUB_ID = "derek-thomas/ScienceQA"
LAYOUT = """\
  <dataset.path>/problems.json
  <dataset.path>/pid_splits.json
  <dataset.path>/images/<split>/<id>/image.png
or, as the Hugging Face hub has it:
  <dataset.path>/data/<split>-*.parquet"""

NOT_IN_PROBLEMS = "listed in pid_splits.json but not in problems.json"
TWO_PROBLEMS = "id is used for two problems in problems.json"
NO_PROBLEM = "problem is not a JSON object"
OPTIONAL = ("hint", "subject", "topic")
COLUMNS = {
    "question": parquet.TEXTS,
    "choices": parquet.LISTS,
    "answer": parquet.NUMBERS,
    "image": parquet.PICTURES,
}
HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class ScienceQA:
    """The authors' questions, with or without a picture, in order of their ids.

    A question's group is its `topic`, of which the full set has 26; its subject is its `subject`.

    Args:
        root: the folder with the two JSON files.
    """

    root: Path
    settings: str = ""

    @property
    def _problems_file(self) -> Path:
        return self.root / "problems.json"

    @property
    def _splits_file(self) -> Path:
        return self.root / "pid_splits.json"

    def check_split(self, split: str) -> None:
        for file in (self._problems_file, self._splits_file):
            if not file.is_file():
                raise DataError(
                    f"{file} is not there. Set dataset.path to the folder of ScienceQA that looks "
                    f"like this:\n{LAYOUT}"
                )
        split_ids(self._splits_file, split)

    def files(self, split: str) -> list[Path]:
        return [self._problems_file, self._splits_file, self._pictures(split)]

    def read(self, split: str) -> Reading:
        problems, pids = read_json_object(self._problems_file), split_ids(self._splits_file, split)
        folder = self._pictures(split)
        return Reading(
            len(pids), ((pid, _read_problem(pid, problems.get(pid), folder)) for pid in pids)
        )

    def _pictures(self, split: str) -> Path:
        """The small splits' pictures lie with those of the split they are part of."""
        return self.root / "images" / split.removeprefix("mini")


@dataclass(frozen=True)
class HubScienceQA:
    """The questions in a copy of the hub's repository, in the order of its rows.

    The rows have no ids: question 17 of `test` is called `test-17`.

    Args:
        folder: holds the parquet files.
    """

    folder: Path
    settings: str = ""

    def check_split(self, split: str) -> None:
        files = self.files(split)
        if not files:
            raise DataError(
                f"{self.folder} has no {HUB_SPLITS.get(split, split)}-*.parquet, which the split "
                f"'{split}' is read from; it holds {names_in(self.folder)}. {parquet.AGAIN}, or "
                f"name the split's files so:\n{LAYOUT}"
            )
        parquet.check_whole(files)
        for file in files:
            parquet.check_columns(file, COLUMNS, "image")

    def files(self, split: str) -> list[Path]:
        return parquet.split_files(self.folder, HUB_SPLITS.get(split, split))

    def read(self, split: str) -> Reading:
        files = self.files(split)
        return Reading(parquet.count_rows(files), self._problems(split, files))

    def _problems(self, split: str, files: list[Path]) -> Iterator[tuple[str, Sample | str]]:
        for number, row in enumerate(parquet.read_rows(files, (*COLUMNS, *OPTIONAL))):
            uid = f"{split}-{number}"
            yield uid, _read_row(uid, row)


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
        images=() if image is None else (image,),
        context=given.get("hint", ""),
    )


def _read_problem(pid: str, problem: Any, pictures: Path) -> Sample | str:
    """The sample that `problem` describes, or the reason why it is left out."""
    if problem is None:
        return NOT_IN_PROBLEMS
    if not isinstance(problem, dict):
        return TWO_PROBLEMS if problem is TWICE else NO_PROBLEM
    if defect := question_defect(problem, *OPTIONAL):
        return defect
    name = problem.get("image")
    if is_absent(name):
        return make_sample(pid, problem, None)
    if not is_file_name(name) or not is_file_name(pid):
        return UNNAMED_PICTURE
    return make_sample(pid, problem, Picture(pictures / pid / name))


def _read_row(uid: str, row: dict[str, Any] | None) -> Sample | str:
    """The sample in a row, or the reason why it is left out."""
    if row is None:
        return parquet.UNREADABLE_ROW
    if defect := question_defect(row, *OPTIONAL):
        return defect
    stored = row.get("image")
    if is_absent(stored):
        return make_sample(uid, row, None)
    data = stored.get("bytes") if isinstance(stored, dict) else stored
    return make_sample(uid, row, Picture(data=data)) if data else MISSING_PICTURE


def _open(path: Path, dataset: Dataset) -> Reader | None:
    if any((path / "data").glob("*.parquet")):
        return HubScienceQA(path / "data")
    if any((path / name).exists() for name in ("problems.json", "pid_splits.json")):
        return ScienceQA(path)
    return None


def _hint(folder: Path) -> str:
    """What a folder holds that could be made into the layout, and how."""
    for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet"):
        if file := next(folder.glob(pattern), None):
            return (
                f". Parquet files such as {file.relative_to(folder)} are read where they are "
                "called data/<split>-*.parquet: rename or link them"
            )
    return ""


SOURCE = Source(
    open=_open,
    layout=LAYOUT,
    hub_id=HUB_ID,
    hub_files="data/*.parquet",
    hub_splits=tuple(HUB_SPLITS),
    hint=_hint,
)
