"""Samples as Arrow tables (the `datasets` library's): one schema for every data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fednano_flwr.base.files import inside
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import MediaFile, Picture, Place, Sample, Sound, Turn

if TYPE_CHECKING:
    from datasets import Dataset, Features

ROWS_AT_ONCE = 250
"""Rows held in memory while a table is written or gone through."""
FILES: dict[str, type[MediaFile]] = {"images": Picture, "choice_images": Picture, "sounds": Sound}
"""Fields of `Sample` that hold files."""


def features() -> Features:
    """The schema: `Sample`'s fields. A picture or a sound is a path or its file's bytes."""
    from datasets import Features, List, Value

    text, file = Value("string"), {"path": Value("string"), "bytes": Value("binary")}
    part = {"text": text, "place": text}
    return Features(
        {
            "uid": text,
            "question": text,
            "group": text,
            "subject": text,
            "choices": List(text),
            "choice_images": List(file),
            "answer": Value("int32"),
            "free_answer": text,
            "images": List(file),
            "context": text,
            "turns": List({"role": text, "parts": List(part)}),
            "references": List(text),
            "instruction": text,
            "sounds": List(file),
        }
    )


class Questions(Sequence[Sample]):
    """Samples in an Arrow table on disk, made when they are asked for.

    Only the rows in use are in memory. A selection shares the table; pickling and copying pass on
    where it lies and which rows are meant.

    Args:
        table: rows as `write_table` writes them.
        root: folder that files' relative paths start from.
        confined: all files must lie in it; taking a question with another raises `DataError`.
    """

    def __init__(self, table: Dataset, root: Path, confined: bool = False) -> None:
        self._table, self._root, self._confined = table, root, confined

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Questions: ...
    def __getitem__(self, index: int | slice) -> Sample | Questions:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._sample(self._table[int(index)])

    def __iter__(self) -> Iterator[Sample]:
        for columns in self._table.iter(batch_size=ROWS_AT_ONCE):
            for values in zip(*columns.values(), strict=True):
                yield self._sample(dict(zip(columns, values, strict=True)))

    def __eq__(self, other: object) -> bool:
        """The same samples in the same order, wherever they are kept."""
        if not isinstance(other, Questions):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Questions: {len(self)}>"

    @property
    def uids(self) -> list[str]:
        return self._table["uid"][:]

    @property
    def groups(self) -> list[str]:
        return self._table["group"][:]

    @property
    def subjects(self) -> list[str]:
        return self._table["subject"][:]

    def select(self, indices: Sequence[int]) -> Questions:
        """The samples with these indices, in this order."""
        return Questions(self._table.select(indices), self._root, self._confined)

    def _sample(self, row: Mapping[str, Any]) -> Sample:
        try:
            files = {
                name: tuple(self._file(kind, stored) for stored in row[name])
                for name, kind in FILES.items()
            }
            texts = {name: tuple(row[name]) for name in ("choices", "references")}
            turns = tuple(
                Turn(turn["role"], tuple(map(_part, turn["parts"]))) for turn in row["turns"]
            )
            return Sample(**{**row, **texts, **files, "turns": turns})
        except (ValueError, TypeError) as error:
            raise DataError(
                f"question {row['uid']} in {self._root} cannot be used: {error}"
            ) from error

    def _file(self, kind: type[MediaFile], stored: Mapping[str, Any]) -> MediaFile:
        if stored["bytes"] is not None:
            return kind(data=stored["bytes"])
        path = stored["path"]
        return kind(inside(self._root, path) if self._confined else self._root / path)


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
        root: folder that holds all its files; without, they may lie anywhere.

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

    rows = list(map(_row, samples))
    columns = {name: [row[name] for row in rows] for name in features()}
    return Questions(Dataset.from_dict(columns, features=features()), Path())


def _row(sample: Sample) -> dict[str, Any]:
    return {
        **vars(sample),
        "turns": [
            {"role": turn.role, "parts": list(map(_stored_part, turn.parts))}
            for turn in sample.turns
        ],
        **{name: list(map(_stored_file, getattr(sample, name))) for name in FILES},
    }


def _stored_file(file: MediaFile) -> dict[str, Any]:
    path = None if file.path is None else str(file.path)
    return {"path": path, "bytes": file.data}


def _stored_part(part: str | Place) -> dict[str, str | None]:
    if isinstance(part, Place):
        return {"text": None, "place": part.value}
    return {"text": part, "place": None}


def _part(stored: Mapping[str, str | None]) -> str | Place:
    place, text = stored["place"], stored["text"]
    return Place(place) if text is None else text
