"""Datasets by the name that `dataset.name` gives; a new one is a loader and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fednano_flwr.data import iconqa, scienceqa
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import describe_skipped
from fednano_flwr.data.sample import QuestionSet

DATASETS: Mapping[str, Callable[[Path], QuestionSet]] = {
    "iconqa": iconqa.load_iconqa,
    "scienceqa": scienceqa.load_scienceqa,
}
LAYOUTS: Mapping[str, str] = {"iconqa": iconqa.LAYOUT, "scienceqa": scienceqa.LAYOUT}


def load_questions(name: str, path: Path) -> QuestionSet:
    """Read the dataset called `name` from the folder `path`.

    Raises:
        DataError: no dataset has this name, the folder is not there or not in the dataset's
            layout, a file is malformed, an id is in both splits, or no training question is left.
    """
    if name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise DataError(f"dataset.name is '{name}'; the datasets there are: {known}.")
    if not path.is_dir():
        raise DataError(
            f"dataset.path is '{path}', and there is no such folder on this machine. Get the "
            f"dataset (docs/data.md says where), unpack it, and set dataset.path to the folder "
            f"that looks like this for {name}:\n{LAYOUTS[name]}"
        )
    questions = DATASETS[name](path)
    if not questions.train:
        raise DataError(
            f"{path} has no training question of {name} that can be used. "
            f"Left out: {describe_skipped(questions.skipped)}."
        )
    _check_ids(questions, path)
    return questions


def _check_ids(questions: QuestionSet, path: Path) -> None:
    """Refuse a test question that is also trained on."""
    trained = {sample.uid for sample in questions.train}
    twice = [sample.uid for sample in questions.test if sample.uid in trained]
    if twice:
        raise DataError(
            f"{len(twice)} question ids of {questions.name} in {path} are in both train and test, "
            f"'{twice[0]}' for one. Repair the splits: no test question may be trained on."
        )
