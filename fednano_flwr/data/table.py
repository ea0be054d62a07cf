"""Samples as Arrow tables (the `datasets` library's): one schema for every dataset."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Picture, Questions, Sample

if TYPE_CHECKING:
    from datasets import Features

ROWS_AT_ONCE = 250
"""Rows held in memory while a table is written."""


def features() -> Features:
    """The schema. A picture is a path or the bytes of an image file, never pixels."""
    from datasets import Features, List, Value

    text, picture = Value("string"), {"path": Value("string"), "bytes": Value("binary")}
    return Features(
        {
            "uid": text,
            "question": text,
            "group": text,
            "subject": text,
            "choices": List(text),
            "choice_images": List(picture),
            "answer": Value("int32"),
            "free_answer": text,
            "image": picture,
            "context": text,
        }
    )


def write_table(file: Path, samples: Iterable[Sample]) -> int:
    """Write samples to an Arrow file as they come; the number written is returned.

    Raises:
        DataError: a sample has a value that does not fit the schema; none is turned into another.
    """
    import pyarrow

    schema, rows, count = features().arrow_schema, map(_row, samples), 0
    with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, schema) as writer:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            try:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
            except (ArithmeticError, TypeError, ValueError) as error:  # pyarrow's and others'
                raise DataError(
                    f"{file}: a question has a value that cannot be stored: {error}"
                ) from error
            count += len(batch)
    return count


def read_table(file: Path, root: Path | None = None) -> Questions:
    """The questions in a file that `write_table` wrote.

    Args:
        root: folder that holds all its pictures; without, they may lie anywhere.

    Raises:
        DataError: it is not such a file.
    """
    from datasets import Dataset

    try:
        table = Dataset.from_file(str(file))
        table.data.validate(full=True)  # else a damaged one is found out in the middle of a run
    except Exception as error:  # datasets, pyarrow and the system each raise their own
        raise DataError(f"{file} is no table that can be read: {error}") from error
    if table.features != features():
        raise DataError(f"{file} is no table of questions: it has {', '.join(table.features)}")
    return Questions(table, file.parent if root is None else root, root is not None)


def in_memory(samples: Iterable[Sample] = ()) -> Questions:
    """A table without a file, for few samples or none."""
    from datasets import Dataset

    rows = [_row(sample) for sample in samples]
    schema = features()
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in schema}
    return Questions(Dataset.from_dict(columns, features=schema), Path())


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "uid": sample.uid,
        "question": sample.question,
        "group": sample.group,
        "subject": sample.subject,
        "choices": list(sample.choices),
        "choice_images": [_stored(picture) for picture in sample.choice_images],
        "answer": sample.answer,
        "free_answer": sample.free_answer,
        "image": None if sample.image is None else _stored(sample.image),
        "context": sample.context,
    }


def _stored(picture: Picture) -> dict[str, Any]:
    path = None if picture.path is None else str(picture.path)
    return {"path": path, "bytes": picture.data}
