"""A data set whose samples are the rows of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data import cells, parquet
from fednano_flwr.data.columns import Roles, find_columns, named_columns
from fednano_flwr.data.defects import DefectError, is_absent
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.rows import (
    LABEL,
    ROWS_LOOKED_AT,
    TEXT_ONLY,
    column_names,
    count_rows,
    read_rows,
)
from fednano_flwr.data.sample import Picture, Sample, Sound
from fednano_flwr.data.sources import Reading
from fednano_flwr.data.split_files import SplitFiles

LATE_COLUMN = f"row has a column {{!r}} that none of the first {ROWS_LOOKED_AT} rows has"
ALL = "all"
"""The group of questions where no column says one."""


@dataclass(frozen=True)
class Cells:
    """One row, by what its columns are read as.

    Attributes:
        place: its file and number.
        folder: what paths of pictures and sounds start from.
        columns: name of a column by role.
        classes: names of the classes of each column that holds classes.
        text_only: whether every cell of its file is a text.
    """

    place: str
    folder: Path
    values: Mapping[str, Any]
    columns: Mapping[str, str]
    classes: Mapping[str, Sequence[str]]
    text_only: bool

    def __getitem__(self, role: str) -> Any:
        """The cell; None where it is empty or there is no such column."""
        value = self.values.get(self.columns.get(role, ""))
        return None if is_absent(value) else value

    @property
    def uid(self) -> str:
        """What its sample is called: its id where a column has one, else its place."""
        return self.place if self["id"] is None else cells.label(self["id"], "id", "")

    def label(self, role: str, default: str) -> str:
        """The cell as a group or a subject; the default where there is no such column."""
        column = self.columns.get(role)
        if column is None:
            return default
        return cells.label(self[role], role, column, self.classes_of(role))

    def classes_of(self, role: str) -> Sequence[str]:
        """Names of the classes that the column holds; () where it holds none."""
        return self.classes.get(self.columns.get(role, ""), ())

    def listed(self, role: str) -> list[Any]:
        """The values of a cell that may hold one, several or none."""
        value = self[role]
        if self.text_only and isinstance(value, str):
            value = cells.parsed(value)
        return cells.listed(value)

    def pictures(self) -> tuple[Picture, ...]:
        return cells.files(Picture, self.listed("image"), self.folder)

    def sounds(self) -> tuple[Sound, ...]:
        return cells.files(Sound, self.listed("audio"), self.folder)


@dataclass(frozen=True)
class RowReader:
    """Samples that `make` makes of rows.

    Args:
        split_files: where the rows are.
        roles: what columns can be read as.
        needed: roles that a file must have a column for, and what to do where it has none.
        make: the sample of a row; raises `DefectError` of one that cannot be used.
    """

    split_files: SplitFiles
    dataset: Dataset
    roles: Roles
    needed: Mapping[str, str]
    make: Callable[[Cells], Sample]

    @property
    def settings(self) -> str:
        own = (self.dataset.columns, self.dataset.group, self.dataset.instruction)
        return "\n".join((*own, *self.split_files.labels))

    def check_split(self, split: str) -> None:
        for file in self.split_files.of(split):
            self._columns(file)

    def files(self, split: str) -> list[Path]:
        return self.split_files.of(split)

    def read(self, split: str) -> Reading:
        files = self.split_files.of(split)
        taken = dict.fromkeys(_said(self._columns(file)) for file in files)
        return Reading(count_rows(files), self._problems(files), "; ".join(taken))

    def _problems(self, files: Sequence[Path]) -> Iterator[tuple[str, Sample | str]]:
        for file in files:
            columns, name = self._columns(file), self.split_files.name(file)
            classes, text_only = self._classes(file), file.suffix.lower() in TEXT_ONLY
            folder = file if file.is_dir() else file.parent
            usual = {n for role, names in self.roles.items() if role not in columns for n in names}
            late = usual - {column.strip().casefold() for column in columns.values()}
            for place, values in read_rows(file, columns.values()):
                place = f"{name}{place}".removeprefix("./")
                if isinstance(values, str):
                    yield place, values
                    continue
                found = (name for name in values if name.strip().casefold() in late)
                if unread := [n for n in found if values[n] != [] and not is_absent(values[n])]:
                    yield place, LATE_COLUMN.format(unread[0])
                    continue
                row = Cells(place, folder, values, columns, classes, text_only)
                try:
                    yield place, self.make(row)
                except DefectError as defect:
                    yield place, str(defect)

    def _classes(self, file: Path) -> Mapping[str, Sequence[str]]:
        if file.is_dir():
            return {LABEL: self.split_files.labels}
        return parquet.class_labels(file) if file.suffix.lower() == ".parquet" else {}

    def _columns(self, file: Path) -> dict[str, str]:
        """Column by role.

        Raises:
            DataError: one that is needed is not there.
        """
        there = column_names(file)
        found = find_columns(file, there, named_columns(self.dataset, self.roles), self.roles)
        for role, advice in self.needed.items():
            if role not in found:
                raise DataError(
                    f"{file} has no column for {role}; its columns are "
                    f"{', '.join(there) or 'none'}. {advice}"
                )
        return found


def _said(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{role}={column}" for role, column in columns.items())
