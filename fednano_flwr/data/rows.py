"""Rows of JSON, JSON Lines, CSV and parquet files, and pictures in folders as rows.

A broken row costs itself.

`datasets` reads such files, too, but its JSON and CSV readers refuse a whole file for one broken
row, and turn texts such as "007" and "NA" into numbers and empty cells.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fednano_flwr.data import parquet
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import DECODER, entries, parse_json

NOT_JSON = "row is not valid JSON"
NOT_AN_OBJECT = "row is not a JSON object"
OTHER_CELLS = "row has another number of cells than the header"
NOT_A_PICTURE = "file in a label's folder is no picture by its name"
IMAGE, LABEL = "image", "label"
"""Columns of pictures in folders."""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
ROWS_LOOKED_AT = 100
"""JSON rows whose names are taken for the file's columns."""
HEAD = 2**12
"""Bytes in which a JSON list begins."""
CHUNK = 2**20
"""Characters of a JSON list that are read at once."""
GAP = re.compile(r"[ \t\r\n,]*")
"""Between two rows of a JSON list."""
LONGEST_ROW = 2**26
"""Characters of a row of a JSON list: what is longer is a list that is broken."""


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        place: where it is in the file: `:` and its number, from 1; of JSON Lines and CSV, the line
            that it begins in.
        values: by column, or the reason why there are none.
    """

    place: str
    values: dict[str, Any] | str


def read_rows(file: Path, columns: Collection[str] = ()) -> Iterator[Row]:
    """Every row of a file, in order; blank lines are passed over.

    A folder of folders has a row for each picture: its `image`, and as `label` the name of
    the folder that it is in.

    Args:
        columns: the only ones that are read of a parquet file.

    Raises:
        DataError: the file cannot be read, or is damaged in such a way that no rows can be told.
    """
    try:
        if file.is_dir():
            yield from _labelled(file)
        else:
            yield from _READERS[file.suffix.lower()](file, columns)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error


def column_names(file: Path) -> list[str]:
    """The columns of a file; of JSON, the names that its first rows have.

    Raises:
        DataError: as `read_rows`.
    """
    if file.is_dir():
        return [IMAGE, LABEL]
    if file.suffix.lower() == ".parquet":
        return parquet.read_schema(file).names
    first = [row.values for row in islice(read_rows(file), ROWS_LOOKED_AT)]
    return list(
        dict.fromkeys(name for values in first if isinstance(values, dict) for name in values)
    )


def count_rows(files: Sequence[Path]) -> int | None:
    """How many rows there are; None where only reading them would tell.

    Raises:
        DataError: as `read_rows`.
    """
    if {file.suffix.lower() for file in files} != {".parquet"}:
        return None
    return parquet.count_rows(files)


def _json_lines(file: Path, columns: Collection[str]) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(f":{number}", _parsed(line))


def _parsed(line: bytes) -> dict[str, Any] | str:
    try:
        return _object(parse_json(line))
    except (ValueError, RecursionError):
        return NOT_JSON


def _object(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else NOT_AN_OBJECT


def _json(file: Path, columns: Collection[str]) -> Iterator[Row]:
    """A list of rows, of which one is in memory at a time; or JSON Lines, as many call them so."""
    with file.open("rb") as opened:
        head = opened.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    yield from (_json_list(file) if head.startswith(b"[") else _json_lines(file, columns))


def _json_list(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as opened:
        text, number = opened.read(CHUNK), 0
        at = text.index("[") + 1
        while True:
            at = GAP.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if text.startswith("]", at) and not (text[at + 1 :] + opened.read(CHUNK)).strip():
                return
            try:
                value, end = DECODER.raw_decode(text, at)
                why = "the list has no end" if end == len(text) else ""
            except (ValueError, RecursionError) as error:
                why = str(error)
            if not why:
                at, number = end, number + 1
                yield Row(f":{number}", _object(value))
            elif (more := opened.read(max(CHUNK, len(text) - at))) and len(text) - at < LONGEST_ROW:
                text, at = text[at:] + more, 0  # it may go on there
            else:
                raise DataError(
                    f"{file} is not valid JSON from its row {number + 1} on: {why}. Repair it, or "
                    "write a row a line (JSON Lines, .jsonl): there, a broken row costs itself."
                )


def _csv(file: Path, columns: Collection[str]) -> Iterator[Row]:
    with file.open("rb") as opened:
        encoding = json.detect_encoding(opened.read(4))
    with file.open(encoding=encoding, errors="surrogateescape", newline="") as opened:
        head = opened.readline()
        opened.seek(0)
        reader = csv.reader(opened, delimiter=max(",;\t", key=head.count), strict=True)
        line = 1
        try:
            header = next(reader, [])
            if not header or len(set(header)) < len(header) or not all(map(str.strip, header)):
                raise DataError(f"{file}: its first line must name the columns, each once.")
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    whole = len(cells) == len(header)
                    values = dict(zip(header, cells, strict=True)) if whole else OTHER_CELLS
                    yield Row(f":{line}", values)
                line = reader.line_num + 1
        except (csv.Error, UnicodeError) as error:
            raise DataError(
                f"{file} is not CSV from line {line} on: {error}. Repair that line: most often, a "
                "quotation mark is missing or not doubled."
            ) from error


def _parquet(file: Path, columns: Collection[str]) -> Iterator[Row]:
    for number, values in enumerate(parquet.read_rows([file], columns), start=1):
        yield Row(f":{number}", parquet.UNREADABLE_ROW if values is None else values)


def _labelled(folder: Path) -> Iterator[Row]:
    for inner in folders_in(folder):
        for entry in entries(inner):
            if not entry.name.startswith("."):
                name = f"{inner.name}/{entry.name}"
                picture = entry.name.lower().endswith(PICTURES)
                values = {IMAGE: name, LABEL: inner.name}
                yield Row(f"/{name}", values if picture else NOT_A_PICTURE)


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, without hidden ones, in order of their names.

    Raises:
        DataError: it cannot be read.
    """
    found = (entry for entry in entries(folder) if not entry.name.startswith("."))
    return [Path(entry.path) for entry in found if entry.is_dir()]


_READERS = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
SUFFIXES = tuple(_READERS)
TEXT_ONLY = (".csv", ".tsv")
"""Kinds of files in which every cell is a text."""
