"""Parquet files of one split: found to be whole, and read row by row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednano_flwr.data.errors import DataError

if TYPE_CHECKING:
    import pyarrow

TEXTS, LISTS, NUMBERS = "texts", "lists of texts", "whole numbers"
PICTURES = "image files' bytes, or structs with such in a field `bytes`"
_TYPES = {
    TEXTS: r"((large_)?string|string_view|dictionary<values=(large_)?string,.*)",
    LISTS: r"(large_|fixed_size_)?list<.*",
    NUMBERS: r"u?int\d+",
    PICTURES: r"(large_)?binary|struct<(.*, )?bytes: (large_)?binary[,>].*",
}
"""How Arrow writes the types of columns that can hold these."""
UNREADABLE_ROW = "row has a value that cannot be read"
_NUMBERED = re.compile(r".+?-(?P<number>\d+)(-of-(?P<total>\d+))?(-[0-9a-f]+)?\.\w+")
_ROWS_AT_ONCE = 16
"""With their pictures, which may be of several MB each: 64 such rows took more than 1 GiB."""
_BUFFER = 2**20
"""Bytes of a file read at once."""
AGAIN = (
    "Get the data set again, with all its files ('hf download --repo-type dataset'; where Git made "
    "the copy, 'git lfs pull')"
)


def split_files(folder: Path, split: str) -> list[Path]:
    """The files `<split>-*.parquet`, in the order of their numbers."""
    return in_order(folder.glob(f"{split}-*.parquet"))


def in_order(files: Iterable[Path]) -> list[Path]:
    """Files of rows in the order of the numbers in their names."""

    def order(file: Path) -> tuple[int, str]:
        match = _NUMBERED.fullmatch(file.name)
        return int(match["number"]) if match else 0, file.name

    return sorted(files, key=order)


def check_whole(files: Sequence[Path]) -> None:
    """Refuse files whose numbers say that one is missing or does not belong.

    Numbers are as in train-00000-of-00002.parquet, or without the total; files of which none has a
    number are taken as they are.

    Raises:
        DataError: names files that are there.
    """
    matches = [_NUMBERED.fullmatch(file.name) for file in files]
    numbers = sorted(int(match["number"]) for match in matches if match)
    if not numbers:
        return
    totals = {match and match["total"] for match in matches}
    total = next(filter(None, totals), None)
    wanted = range(int(total)) if total else range(numbers[0], numbers[-1] + 1)
    if len(totals) > 1 or numbers != list(wanted) or not all(matches):
        missing = [str(number) for number in wanted if number not in numbers]
        raise DataError(
            f"{files[0].parent}: {', '.join(file.name for file in files)} are not one whole split"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + f". {AGAIN}, or remove what does not belong to it."
        )


def check_columns(file: Path, wanted: Mapping[str, str], pictures: str) -> None:
    """Refuse a file that is not parquet, or whose columns are of other kinds than wanted.

    Args:
        wanted: column to `TEXTS`, `LISTS`, `NUMBERS` or `PICTURES`.
        pictures: the one of these that may be missing, unless another column holds pictures.
    """
    schema = read_schema(file)
    kinds = dict(zip(schema.names, schema.types, strict=True))
    others = any(_fits(PICTURES, kind) for kind in kinds.values())
    for name, holds in wanted.items():
        if name not in kinds and (name != pictures or others):
            raise DataError(
                f"{file} has no column '{name}', which must hold {holds}; its columns are "
                f"{', '.join(kinds)}. Rename the one that is meant."
            )
        empty = name == pictures and str(kinds.get(name)) == "null"
        if name in kinds and not empty and not _fits(holds, kinds[name]):
            raise DataError(
                f"{file}: the column '{name}' is of type {kinds[name]}, and must hold {holds}. "
                "Write the file anew with such a column."
            )


def read_schema(file: Path) -> pyarrow.Schema:
    """
    Raises:
        DataError: it is not parquet.
    """
    import pyarrow.parquet as parquet

    try:
        return parquet.read_schema(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DataError(_damaged(file, error)) from error


def class_labels(file: Path) -> dict[str, list[str]]:
    """Names of the classes of each column that `datasets` wrote as a `ClassLabel`.

    Raises:
        DataError: it is not parquet.
    """
    from datasets import ClassLabel, Features

    schema = read_schema(file)
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        found = Features.from_arrow_schema(schema)
    except Exception:  # of another version, with what this one does not know; then none are known
        return {}
    return {name: kind.names for name, kind in found.items() if isinstance(kind, ClassLabel)}


def count_rows(files: Sequence[Path]) -> int:
    """
    Raises:
        DataError: one cannot be read.
    """
    import pyarrow.parquet as parquet

    total = 0
    for file in files:
        try:
            total += parquet.ParquetFile(file).metadata.num_rows
        except (OSError, ValueError) as error:
            raise DataError(_damaged(file, error)) from error
    return total


def read_rows(files: Sequence[Path], columns: Iterable[str]) -> Iterator[dict[str, Any] | None]:
    """Each row, in order, with those of the columns that there are; None for an unreadable one.

    Raises:
        DataError: a file is damaged.
    """
    import pyarrow.parquet as parquet

    for file in files:
        try:
            # As a stream: by default a whole row group, with all its pictures, would be in memory.
            opened = parquet.ParquetFile(
                file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
            )
            there = [name for name in opened.schema_arrow.names if name in columns]
            for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=there):
                for number in range(len(batch)):
                    yield _row(batch.slice(number, 1))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(_damaged(file, error)) from error


def _row(batch: pyarrow.RecordBatch) -> dict[str, Any] | None:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError):  # a text that is not UTF-8, a date that Python has not
        return None


def _fits(holds: str, kind: pyarrow.DataType) -> bool:
    """Whether a column of this type can hold that."""
    return re.fullmatch(_TYPES[holds], str(kind)) is not None


def _damaged(file: Path, error: Exception) -> str:
    return f"{file} cannot be read as parquet: {error}. {AGAIN}."
