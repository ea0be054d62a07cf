"""Rows of a committed CSV file: a line a finished run, so that no run is done again."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from fednano_flwr.base.files import replace_file


class Row(Protocol):
    """A dataclass of text and numbers; `None` is an empty field."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def cell(self) -> Hashable:
        """Which run of the study it is."""


R = TypeVar("R", bound=Row)


def read_rows(file: Path, kind: type[R]) -> list[R]:
    """All rows; none where there is no file.

    Raises:
        ValueError: a line is not one of a row, or of the same run as another; the message names it.
    """
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    found = []
    for number, line in enumerate(lines, start=2):
        try:
            if None in line or None in line.values():
                raise ValueError("it has more or fewer fields than the first line")
            parsed = {one.name: _parsed(str(one.type), line[one.name]) for one in fields(kind)}
            found.append(kind(**parsed))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number} is no run of the study: {error!r}") from None
    for cell, times in Counter(row.cell for row in found).items():
        if times > 1:
            raise ValueError(f"{file} has {times} lines of the run {cell}: remove all but one")
    return found


def add_row(file: Path, row: Row) -> None:
    """Append a row; one of the same cell, of another config, data or model, is replaced."""
    kept = [one for one in read_rows(file, type(row)) if one.cell != row.cell]
    write_rows(file, [*kept, row])


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write at least one row, all as a whole or not at all."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [one.name for one in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, out.getvalue().encode())


def _parsed(kind: str, text: str) -> Any:
    if kind.endswith("None") and not text:
        return None
    return {"str": str, "int": int, "float": float}[kind.split(" ")[0]](text)
