"""Reading the data set that the run config names, and checking it before."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fednano_flwr.base.reasons import first_few
from fednano_flwr.base.resources import resolve
from fednano_flwr.config import Dataset
from fednano_flwr.data import hub
from fednano_flwr.data.cache import Split, read_split
from fednano_flwr.data.defects import describe_skipped
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.partition import check_partitioner
from fednano_flwr.data.reading import names_in
from fednano_flwr.data.rows import SUFFIXES
from fednano_flwr.data.sources import (
    ANY_HUB_ID,
    OWN_QUESTIONS,
    Found,
    Source,
    chosen_tasks,
    find_source,
    source_names,
)
from fednano_flwr.data.split_files import is_saved
from fednano_flwr.data.table import Questions, in_memory

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SAVED = (
    ": what `datasets` saves. Load it with `load_from_disk`, and write each split with "
    "`to_parquet` to data/<split>-00000-of-00001.parquet"
)


@dataclass(frozen=True)
class QuestionSet:
    """What was read of a data set.

    Attributes:
        revision: its commit on the hub, "" of a folder.
        columns: which column was read as what, by split, where the layout does not fix it.
        left_out: ids of the questions that were left out, by split and reason.
    """

    name: str
    train: Questions
    test: Questions
    revision: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def skipped(self) -> Counter[str]:
        """How many questions were left out, by reason."""
        return Counter(
            reason
            for reasons in self.left_out.values()
            for reason, ids in reasons.items()
            for _ in ids
        )


def load_questions(dataset: Dataset) -> QuestionSet:
    """Read the data set that the run config names: its train split and, where used, its test split.

    With `dataset.test-fraction` above 0, clients cut their test questions from their own training
    questions; then the data set's test split is not read, and `test` is empty.

    Raises:
        DataError: the settings do not fit, the folder is not there or not in the layout, a file is
            malformed, too many questions cannot be used, or an id occurs twice.
        ResourceError: a package or module that `dataset.path` names is not installed.
    """
    check_partitioner(dataset)
    found = _find(dataset)
    splits = {name: read_split(found, name) for name in _checked_splits(found, dataset)}
    train = splits[dataset.train_split].questions
    test = in_memory() if dataset.test_fraction else splits[dataset.test_split].questions
    _check_skipped(dataset, found, splits)
    columns = {name: split.columns for name, split in splits.items() if split.columns}
    left_out = {name: split.skipped for name, split in splits.items() if split.skipped}
    questions = QuestionSet(dataset.name, train, test, found.revision, columns, left_out)
    if not train:
        raise DataError(
            f"{found.place} has no training question of {dataset.name} that can be used. "
            f"Left out: {describe_skipped(questions.skipped)}."
        )
    _check_ids(questions, found.place)
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
    source = find_source(dataset.name)
    hub_id = _hub_id(dataset)
    if HF_HUB_OFFLINE or not hub_id:
        _checked_splits(_find(dataset), dataset)
        return
    chosen_tasks(dataset, source.tasks)
    for split in _split_names(dataset):
        if source.hub_splits and split not in source.hub_splits:
            raise DataError(
                f"there is no split '{split}' in {hub_id} on the hub; it has "
                f"{', '.join(source.hub_splits)}."
            )


def commit_of(dataset: Dataset, here: bool) -> str:
    """The data set's commit on the hub; "" of a folder, or where it is not known.

    Args:
        here: whether clients read it on this machine, which then has it or downloads it; else it is
            known only where `dataset.revision` is a commit.

    Raises:
        DataError: it cannot be downloaded.
    """
    if not (hub_id := _hub_id(dataset)):
        return ""
    if here:
        return _download(hub_id, dataset).name
    return dataset.revision if re.fullmatch("[0-9a-f]{40}", dataset.revision) else ""


def check_revision(dataset: Dataset) -> None:
    """Refuse a revision of what has none.

    Raises:
        DataError: the data set is not on the hub.
    """
    if dataset.revision and not _hub_id(dataset):
        hub_id = find_source(dataset.name).hub_id
        raise DataError(
            f"dataset.revision is '{dataset.revision}', and dataset.path '{dataset.path}' is not "
            "on the hub: a folder has no revision. Leave dataset.revision empty"
            + (f", or set dataset.path to {hub_id}." if hub_id else ".")
        )


def _hub_id(dataset: Dataset) -> str:
    """What `dataset.path` names on the hub; "" where it is a place on this machine."""
    path, known = dataset.path, find_source(dataset.name).hub_id
    fits = known == ANY_HUB_ID and Path(path).suffix.lower() not in SUFFIXES
    named = HUB_ID.fullmatch(path) is not None if fits else path == known != ""
    return path if named and not Path(path).exists() else ""


def _download(hub_id: str, dataset: Dataset) -> Path:
    return hub.download(hub_id, find_source(dataset.name).hub_files, dataset.revision)


def _find(dataset: Dataset) -> Found:
    """The data set at `dataset.path`, downloaded where that is a hub id."""
    source = find_source(dataset.name)
    check_revision(dataset)
    chosen_tasks(dataset, source.tasks)
    hub_id = _hub_id(dataset)
    path = _download(hub_id, dataset) if hub_id else resolve("dataset.path", dataset.path)
    path = Path(os.path.abspath(path))
    reader = source.open(path, dataset) if path.exists() else None
    if reader is None:
        raise DataError(_not_there(source, path, dataset))
    place, revision = (hub_id, path.name) if hub_id else (str(path), "")
    return Found(dataset.name, reader, place, revision)


def _not_there(source: Source, path: Path, dataset: Dataset) -> str:
    """What is at `path` instead of the data set, and what to do."""
    at = f"dataset.path = '{dataset.path}'"
    if not path.exists():
        what = f"{at}: there is no folder or file {path} on this machine; docs/data.md says where "
        what += "to get it"
    elif not path.is_dir():
        what = f"{at}: {path} is a file, and no {dataset.name}"
    else:
        what = f"{at} is no {dataset.name}: {path} holds {names_in(path)}"
        what += SAVED if is_saved(path) else source.hint(path)
    others = " or ".join(name for name in source_names() if _opens(name, path, dataset))
    if others:
        what += f"; that looks like dataset.name = {others}"
    on_hub = f" On the hub, {source.hub_id} is read." if source.hub_id else ""
    return (
        f"{what}. Set dataset.path to what looks like this for {dataset.name}:\n"
        f"{source.layout}\n{OWN_QUESTIONS}{on_hub}"
    )


def _opens(name: str, path: Path, dataset: Dataset) -> bool:
    """Whether another source has a reader of what is at a path."""
    with suppress(DataError):
        return find_source(name).open(path, replace(dataset, tasks="all")) is not None
    return False


def _split_names(dataset: Dataset) -> tuple[str, ...]:
    return (dataset.train_split, *(() if dataset.test_fraction else (dataset.test_split,)))


def _checked_splits(found: Found, dataset: Dataset) -> tuple[str, ...]:
    """The splits to read, each found to be there."""
    names = _split_names(dataset)
    for name in names:
        found.reader.check_split(name)
    return names


def _check_skipped(dataset: Dataset, found: Found, splits: Mapping[str, Split]) -> None:
    """Refuse a dataset of which more than `dataset.max-skipped` cannot be used."""
    skipped = sum(split.counts.total() for split in splits.values())
    total = skipped + sum(len(split.questions) for split in splits.values())
    if not total or skipped / total <= dataset.max_skipped:
        return
    lines = [
        f"  {name}: {len(pids)} {reason} ({first_few(pids)})"
        for name, split in splits.items()
        for reason, pids in sorted(split.skipped.items(), key=lambda item: -len(item[1]))
    ]
    lines += [
        f"  {n}: there is no {split.missing[0]}" for n, split in splits.items() if split.missing
    ]
    files = [f"  {split.skipped_file}" for split in splits.values() if split.skipped]
    raise DataError(
        f"{skipped} of {total} questions of {dataset.name} in {found.place} cannot be used: "
        f"{100 * skipped / total:.1f} %, and dataset.max-skipped is {dataset.max_skipped:g}.\n"
        + "\n".join(lines)
        + "\nAll their ids are in\n"
        + "\n".join(files)
        + "\nRepair the dataset, or raise dataset.max-skipped to go on without them."
    )


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
