"""The one form in which every dataset reaches the rest of the project."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fednano_flwr.base.files import inside
from fednano_flwr.data.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

ITERATED_AT_ONCE = 64
"""Rows held in memory by an iteration; a row may hold the bytes of its pictures."""


@dataclass(frozen=True)
class Picture:
    """An image file that has not been decoded; exactly one of the two is set.

    Attributes:
        path: where the file lies.
        data: its content (png, jpeg, …), where a dataset keeps pictures in its table.
    """

    path: Path | None = None
    data: bytes | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise ValueError("a Picture has either a path or data")


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        uid: unique within its dataset, stable between runs and machines.
        question: the question as the dataset has it.
        group: what partitioning splits by (a skill, a topic, a grade and task).
        subject: what accuracy is reported by.
        choices: the options in words, in the dataset's order; empty if they are pictures or none.
        choice_images: the options as pictures; at most one of the two is non-empty.
        answer: index of the right option, None for a free answer.
        free_answer: text of a free answer, else "".
        image: the question's own picture, or None.
        context: text given with the question (a hint), or "".
    """

    uid: str
    question: str
    group: str
    subject: str
    choices: tuple[str, ...] = ()
    choice_images: tuple[Picture, ...] = ()
    answer: int | None = None
    free_answer: str = ""
    image: Picture | None = None
    context: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures in the order in which the prompt shows them."""
        own = () if self.image is None else (self.image,)
        return own + self.choice_images

    @property
    def num_options(self) -> int:
        """How many options there are to choose from; 0 for a free answer."""
        return len(self.choices) or len(self.choice_images)

    @property
    def option_names(self) -> tuple[str, ...]:
        """The options as people are told of them; () for a free answer."""
        return self.choices or tuple(f"picture {n}" for n in range(1, self.num_options + 1))


class Questions(Sequence[Sample]):
    """Samples in an Arrow table on disk, made when they are asked for.

    Only the rows in use are in memory. A selection shares the table; pickling and copying pass on
    where it lies and which rows are meant.

    Args:
        table: rows as `fednano_flwr.data.table` writes them.
        root: folder that pictures' relative paths start from.
        confined: all pictures must lie in it; taking a question with another raises `DataError`.
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
        for columns in self._table.iter(batch_size=ITERATED_AT_ONCE):
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
        return _sample(row, self._root, self._confined)


@dataclass(frozen=True)
class QuestionSet:
    """What was read of a dataset, and how many questions were left out for which reason.

    `revision` is its commit on the hub, "" of a folder.
    """

    name: str
    train: Questions
    test: Questions
    skipped: Counter[str] = field(default_factory=Counter)
    revision: str = ""


def _sample(row: Mapping[str, Any], root: Path, confined: bool) -> Sample:
    """The sample in a table's row."""
    image, options = row["image"], row["choice_images"]
    try:
        return Sample(
            uid=row["uid"],
            question=row["question"],
            group=row["group"],
            subject=row["subject"],
            choices=tuple(row["choices"]),
            choice_images=tuple(_picture(stored, root, confined) for stored in options),
            answer=row["answer"],
            free_answer=row["free_answer"],
            image=None if image is None else _picture(image, root, confined),
            context=row["context"],
        )
    except (ValueError, TypeError) as error:
        raise DataError(f"question {row['uid']} in {root} cannot be used: {error}") from error


def _picture(stored: Mapping[str, Any], root: Path, confined: bool) -> Picture:
    if stored["bytes"] is not None:
        return Picture(data=stored["bytes"])
    return Picture(path=inside(root, stored["path"]) if confined else root / stored["path"])
