"""Data sets by the name that `dataset.name` gives: each module here is one, with its `SOURCE`.

Another package adds its own by an entry point of the group `fednano_flwr.sources`, called as
`dataset.name` has it, whose object is a `Source`; a program for its own process by `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple, Protocol

from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Sample

ENTRY_POINTS = "fednano_flwr.sources"
OWN_QUESTIONS = (
    'Data of your own are read by dataset.name = "messages" (dialogues) and "table" (questions and '
    "answers in columns): docs/own-data.md."
)
ANY_HUB_ID = "owner/name"
_registered: dict[str, Source] = {}


class Reading(NamedTuple):
    """One split being read.

    Attributes:
        total: how many problems there are; None where only reading them tells.
        problems: each as it comes, an id with its sample, or with the reason why it is left out.
        columns: which column is read as what, for people; "" where the layout fixes it.
    """

    total: int | None
    problems: Iterator[tuple[str, Sample | str]]
    columns: str = ""


class Reader(Protocol):
    """A data set that has been found; nothing but its layout has been looked at."""

    @property
    def settings(self) -> str:
        """What decides, besides the files, which samples are read of them; "" for nothing."""

    def check_split(self, split: str) -> None:
        """Raises: DataError: there is no such split, or it is seen not to be whole."""

    def files(self, split: str) -> Iterable[Path]:
        """Files, and folders of files, that `read` depends on: a change of one is noticed."""

    def read(self, split: str) -> Reading:
        """Raises: DataError: a file about many questions is malformed."""


@dataclass(frozen=True)
class Source:
    """How a data set is found and read.

    Attributes:
        open: makes a reader of what `dataset.path` names; None where that has another layout.
        layout: what its folder looks like, for people.
        tasks: what `dataset.tasks` may name.
        hub_id: what `dataset.path` may name on the Hugging Face hub; ANY_HUB_ID where it may be any
            data set, "" where nothing.
        hub_files: pattern of the files that are downloaded from there.
        hub_splits: what `dataset.train-split` and `test-split` may name there; () where only the
            files tell.
        hint: what to do with a folder of another layout, where that is known, else "".
    """

    open: Callable[[Path, Dataset], Reader | None]
    layout: str
    tasks: tuple[str, ...] = ()
    hub_id: str = ""
    hub_files: str = "*"
    hub_splits: tuple[str, ...] = ("train", "test")
    hint: Callable[[Path], str] = lambda folder: ""


@dataclass(frozen=True)
class Found:
    """A data set that was found.

    Attributes:
        name: as `dataset.name` has it.
        place: where it lies, for people.
        revision: its commit on the hub; "" of a folder.
    """

    name: str
    reader: Reader
    place: str
    revision: str = ""


def register(name: str, source: Source) -> None:
    """Make `dataset.name = name` mean this source in this process.

    Clients in processes of their own do not see it; for them, use an entry point.

    Raises:
        ValueError: another source has this name.
    """
    if name in source_names() and _registered.get(name) != source:
        raise ValueError(f"there is another source {name!r}")
    _registered[name] = source


def source_names() -> list[str]:
    own = {module.name for module in iter_modules(__path__)}
    return sorted({*own, *_registered, *entry_points(group=ENTRY_POINTS).names})


def find_source(name: str) -> Source:
    """The source of this name: a registered one, else the project's own, else another package's.

    Raises:
        DataError: there is none, or the package that brings it cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    if name in {module.name for module in iter_modules(__path__)}:
        return import_module(f"{__name__}.{name}").SOURCE
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return entry.load()
        except Exception as error:  # another package's import may raise anything
            raise DataError(
                f"dataset.name = {name}: {entry.value} cannot be loaded: {error}"
            ) from (error)
    raise DataError(
        f"dataset.name is '{name}': must be one of {', '.join(source_names())}. {OWN_QUESTIONS}"
    )


def chosen_tasks(dataset: Dataset, known: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks that `dataset.tasks` names, in the order of `known`; () where it is `all`.

    Raises:
        DataError: it names others.
    """
    names = {name.strip() for name in dataset.tasks.split(",")}
    if names == {"all"}:
        return ()
    if not names <= set(known):
        others = f", or of {', '.join(known)} one or more, joined by commas" if known else ""
        raise DataError(
            f"dataset.tasks is '{dataset.tasks}': for {dataset.name} it must be all{others}."
        )
    return tuple(task for task in known if task in names)
