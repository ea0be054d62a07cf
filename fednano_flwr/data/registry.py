"""Datasets by the name that `dataset.name` gives; a new one is a source and a line here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from fednano_flwr.base.resources import resolve
from fednano_flwr.config import Dataset
from fednano_flwr.data.cache import Split, read_split
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.partition import check_partitioner
from fednano_flwr.data.reading import OWN_QUESTIONS, Source, describe_skipped, names_in
from fednano_flwr.data.sample import QuestionSet
from fednano_flwr.data.sources import hub, iconqa, scienceqa
from fednano_flwr.data.table import in_memory

EXAMPLES_SHOWN = 5
"""Ids that an error names for each reason why questions were left out."""


def _open_scienceqa(path: Path, dataset: Dataset) -> Source:
    _tasks(dataset, ())
    if hub.is_hub_copy(path):
        return hub.HubScienceQA(path, str(path))
    if scienceqa.is_copy(path):
        return scienceqa.ScienceQA(path)
    raise DataError(
        f"No ScienceQA in {path}, which holds {names_in(path)}. {_other_form(path)}Set "
        f"dataset.path to the folder that looks like this:\n{LAYOUTS['scienceqa']}\n"
        f"{OWN_QUESTIONS}"
    )


def _other_form(path: Path) -> str:
    """What a folder holds that could be made into a layout that is read, and how."""
    if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return (
            "That is what `datasets` saves: load it with `load_from_disk`, and write each split "
            "with `to_parquet` to data/<split>-00000-of-00001.parquet. "
        )
    for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet"):
        if file := next(path.glob(pattern), None):
            return (
                f"Parquet files such as {file.relative_to(path)} are read where they are called "
                "data/<split>-*.parquet: rename or link them. "
            )
    return "That looks like IconQA: set dataset.name to iconqa. " if _is_iconqa(path) else ""


def _is_iconqa(path: Path) -> bool:
    try:
        return bool(iconqa.find_root(path))
    except DataError:
        return False


def _open_iconqa(path: Path, dataset: Dataset) -> Source:
    root = iconqa.find_root(path)
    return iconqa.IconQA(root, _tasks(dataset, iconqa.TASKS) or iconqa.tasks_in(root))


DATASETS: Mapping[str, Callable[[Path, Dataset], Source]] = {
    "iconqa": _open_iconqa,
    "scienceqa": _open_scienceqa,
}
LAYOUTS: Mapping[str, str] = {
    "iconqa": iconqa.LAYOUT,
    "scienceqa": f"{scienceqa.LAYOUT}\nor, as the Hugging Face hub has it:\n{hub.LAYOUT}",
}


def load_questions(dataset: Dataset) -> QuestionSet:
    """Read the dataset that the run config names: its train split and, where used, its test split.

    With `dataset.test-fraction` above 0, clients cut their test questions from their own training
    questions; then the dataset's test split is not read, and `test` is empty.

    Raises:
        DataError: the settings do not fit, the folder is not there or not in the dataset's layout,
            a file is malformed, too many questions cannot be used, or an id occurs twice.
        ResourceError: a package or module that `dataset.path` names is not installed.
    """
    check_partitioner(dataset)
    source = _open(dataset, download=True)
    splits = {name: read_split(source, name) for name in _split_names(source, dataset)}
    train = splits[dataset.train_split].questions
    test = in_memory() if dataset.test_fraction else splits[dataset.test_split].questions
    _check_skipped(dataset, source, splits)
    skipped = sum((split.counts for split in splits.values()), Counter[str]())
    questions = QuestionSet(dataset.name, train, test, skipped, source.revision)
    if not train:
        raise DataError(
            f"{source.place} has no training question of {dataset.name} that can be used. "
            f"Left out: {describe_skipped(questions.skipped)}."
        )
    _check_ids(questions, source.place)
    return questions


def check_dataset(dataset: Dataset) -> None:
    """Refuse settings that cannot work, without reading the questions or downloading them.

    Where nothing can be downloaded (`HF_HUB_OFFLINE`), a hub id has to be in the hub's cache.

    Raises:
        DataError, ResourceError: as `load_questions`, for name, path, revision, layout, tasks,
            splits and partitioner.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    check_partitioner(dataset)
    _split_names(_open(dataset, download=HF_HUB_OFFLINE), dataset)


def commit_of(dataset: Dataset, here: bool) -> str:
    """The data set's commit on the hub; "" of a folder, or where it is not known.

    Args:
        here: whether clients read it on this machine, which then has it or downloads it; else it is
            known only where `dataset.revision` is a commit.

    Raises:
        DataError: it cannot be downloaded.
    """
    if not _is_on_hub(dataset):
        return ""
    if here:
        return hub.download(dataset.revision).name
    return dataset.revision if re.fullmatch("[0-9a-f]{40}", dataset.revision) else ""


def check_revision(dataset: Dataset) -> None:
    """Refuse a revision of what has none.

    Raises:
        DataError: the data set is not on the hub.
    """
    if dataset.revision and not _is_on_hub(dataset):
        raise DataError(
            f"dataset.revision is '{dataset.revision}', and dataset.path '{dataset.path}' is not "
            "on the hub: a folder has no revision. Leave dataset.revision empty, or set "
            f"dataset.name to scienceqa and dataset.path to {hub.HUB_ID}."
        )


def _is_on_hub(dataset: Dataset) -> bool:
    on_hub = dataset.name == "scienceqa" and dataset.path == hub.HUB_ID
    return on_hub and not Path(dataset.path).is_dir()


def _open(dataset: Dataset, download: bool) -> Source:
    """The dataset found at `dataset.path`; of a hub id not to be downloaded, its name."""
    if dataset.name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise DataError(
            f"dataset.name is '{dataset.name}': must be one of {known}. {OWN_QUESTIONS}"
        )
    check_revision(dataset)
    if _is_on_hub(dataset):
        _tasks(dataset, ())
        root = hub.download(dataset.revision) if download else None
        return hub.HubScienceQA(root, hub.HUB_ID, "" if root is None else root.name)
    path = resolve("dataset.path", dataset.path)
    if path.is_dir():
        return DATASETS[dataset.name](Path(os.path.abspath(path)), dataset)
    what = f"{path} is a file" if path.exists() else f"there is no folder {path} on this machine"
    raise DataError(
        f"dataset.path is '{dataset.path}', and {what}. Get the dataset (docs/data.md says where), "
        "unpack it, and set dataset.path to the folder that looks like this for "
        f"{dataset.name}:\n{LAYOUTS[dataset.name]}\n{OWN_QUESTIONS} Of the Hugging Face hub, only "
        f"dataset.name=scienceqa with dataset.path={hub.HUB_ID} is read."
    )


def _tasks(dataset: Dataset, known: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks that `dataset.tasks` names, in the dataset's order; none where it is `all`."""
    names = {name.strip() for name in dataset.tasks.split(",")}
    if names == {"all"}:
        return ()
    if not names <= set(known):
        others = f", or of {', '.join(known)} one or more, joined by commas" if known else ""
        raise DataError(
            f"dataset.tasks is '{dataset.tasks}': for {dataset.name} it must be all{others}."
        )
    return tuple(task for task in known if task in names)


def _split_names(source: Source, dataset: Dataset) -> tuple[str, ...]:
    """The splits to read, each found to be there."""
    names = (dataset.train_split, *(() if dataset.test_fraction else (dataset.test_split,)))
    for name in names:
        source.check_split(name)
    return names


def _check_skipped(dataset: Dataset, source: Source, splits: Mapping[str, Split]) -> None:
    """Refuse a dataset of which more than `dataset.max-skipped` cannot be used."""
    skipped = sum(split.counts.total() for split in splits.values())
    total = skipped + sum(len(split.questions) for split in splits.values())
    if not total or skipped / total <= dataset.max_skipped:
        return
    lines = [
        f"  {name}: {len(pids)} {reason} ({_some(pids)})"
        for name, split in splits.items()
        for reason, pids in sorted(split.skipped.items(), key=lambda item: -len(item[1]))
    ]
    files = [f"  {split.skipped_file}" for split in splits.values() if split.skipped]
    raise DataError(
        f"{skipped} of {total} questions of {dataset.name} in {source.place} cannot be used: "
        f"{100 * skipped / total:.1f} %, and dataset.max-skipped is {dataset.max_skipped:g}.\n"
        + "\n".join(lines)
        + "\nAll their ids are in\n"
        + "\n".join(files)
        + "\nRepair the dataset, or raise dataset.max-skipped to go on without them."
    )


def _some(pids: list[str]) -> str:
    more = ", …" if len(pids) > EXAMPLES_SHOWN else ""
    return ", ".join(pids[:EXAMPLES_SHOWN]) + more


def _check_ids(questions: QuestionSet, place: str) -> None:
    """Refuse a test question that is also trained on, and an id that two questions share."""
    train, test = questions.train.uids, questions.test.uids
    twice = sorted(set(train) & set(test))
    if twice:
        raise DataError(
            f"{len(twice)} question ids of {questions.name} in {place} are in both train and test, "
            f"'{twice[0]}' for one. Repair the splits: no test question may be trained on."
        )
    if len(set(train)) < len(train) or len(set(test)) < len(test):
        counts = Counter(train) + Counter(test)
        pid = next(pid for pid, count in counts.items() if count > 1)
        raise DataError(
            f"two questions of {questions.name} in {place} have the id '{pid}'. Repair the "
            "dataset, or read one of its tasks alone with dataset.tasks."
        )
