"""ScienceQA as the Hugging Face hub has it (`derek-thomas/ScienceQA`): pictures inside the table.

<path>/data/<split>-*.parquet             splits train, validation, test
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fednano_flwr.config import HUB_DATASETS
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import (
    MISSING_PICTURE,
    Reading,
    files_below,
    is_absent,
    names_in,
    question_defect,
)
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources.scienceqa import OPTIONAL, make_sample

if TYPE_CHECKING:
    import pyarrow

(HUB_ID,) = HUB_DATASETS
LAYOUT = """\
  <dataset.path>/data/<split>-*.parquet"""
AGAIN = (
    "Get the repository again, with all files of its folder data "
    f"('hf download --repo-type dataset {HUB_ID}')"
)

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_COLUMNS = {
    "question": "texts",
    "choices": "lists of texts",
    "answer": "whole numbers",
    "image": "image files' bytes, or structs with such in a field `bytes`",
}
"""What a column must hold; `image` and the optional texts may be missing."""
UNREADABLE_ROW = "row has a value that cannot be read"
_NUMBERED = re.compile(
    r"(?P<split>.+?)-(?P<number>\d+)(?P<of>-of-(?P<total>\d+))?(?P<digest>-[0-9a-f]+)?\.parquet"
)
_ROWS_AT_ONCE = 64
_BUFFER = 2**20
"""Bytes of a file read at once."""


@dataclass(frozen=True)
class HubScienceQA:
    """The questions in a copy of the hub's repository, in the order of its rows.

    The rows have no ids: question 17 of `test` is called `test-17`.

    Args:
        root: the folder that holds `data`; None where it has not been downloaded.
        origin: what the user called it.
        revision: the commit on the hub; "" of a folder.
    """

    name: ClassVar[str] = "scienceqa"
    root: Path | None
    origin: str
    revision: str = ""

    @property
    def place(self) -> str:
        return self.origin

    def check_split(self, split: str) -> None:
        """Raises: DataError: there is no such split here."""
        if split not in _SPLITS:
            raise DataError(
                f"the split '{split}' is only in ScienceQA's original layout (pid_splits.json); "
                f"the hub's form in {self.place} has {', '.join(_SPLITS)}."
            )
        if self.root is None:
            return
        files = self._files(split)
        if not files:
            raise DataError(
                f"{self.place} has no data/{_SPLITS[split]}-*.parquet, which the split '{split}' "
                f"is read from; its folder data holds {names_in(self.root / 'data')}. {AGAIN}, or "
                f"name the split's files so:\n{LAYOUT}"
            )
        _check_whole(files)
        for file in files:
            _check_columns(file)

    def identity(self, split: str) -> Iterator[str]:
        for file in self._files(split):
            yield from files_below(file)

    def read(self, split: str) -> Reading:
        import pyarrow.parquet as parquet

        files = self._files(split)
        try:
            total = sum(parquet.ParquetFile(file).metadata.num_rows for file in files)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            raise DataError(_damaged(files, error)) from error
        return Reading(total, self._problems(split, files))

    def _problems(self, split: str, files: list[Path]) -> Iterator[tuple[str, Sample | str]]:
        for number, row in enumerate(_rows(files)):
            uid = f"{split}-{number}"
            yield uid, _read_row(uid, row)

    def _files(self, split: str) -> list[Path]:
        assert self.root is not None
        found = (self.root / "data").glob(f"{_SPLITS.get(split, split)}-*.parquet")
        return sorted(found, key=lambda file: (_number(file.name), file.name))


def is_hub_copy(folder: Path) -> bool:
    """Whether the folder looks like a copy of the hub's repository."""
    return any((folder / "data").glob("*.parquet"))


def download(revision: str) -> Path:
    """The repository's folder in the hub's cache, downloaded if it is not there yet.

    Args:
        revision: branch, tag or commit; "" is the default branch.

    Returns:
        A folder that is called by the commit.

    Raises:
        DataError: it is neither in the cache nor to be had, or there is no such revision.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        return _snapshot(revision, local=HF_HUB_OFFLINE)
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        with suppress(Exception):  # of a commit, it asks the hub even for what is in the cache
            return _snapshot(revision, local=True)
        at, option = f" at dataset.revision = '{revision}'", f" --revision {revision}"
        raise DataError(
            f"dataset.path = '{HUB_ID}'{at if revision else ''} is not in this machine's Hugging "
            f"Face cache and cannot be downloaded: {error}. Fetch it where there is a connection "
            f"('hf download --repo-type dataset {HUB_ID}{option if revision else ''}'), or set "
            "dataset.path to a folder with a copy of it."
        ) from error


def _snapshot(revision: str, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            HUB_ID,
            repo_type="dataset",
            revision=revision or None,
            allow_patterns="data/*.parquet",
            local_files_only=local,
        )
    )


def _check_whole(files: Sequence[Path]) -> None:
    """Refuse a split whose files' numbers say that one is missing or does not belong.

    Numbers are as in train-00000-of-00002.parquet, or without the total; files of which none has a
    number are taken as they are.
    """
    fault = _numbering_fault([file.name for file in files])
    if fault:
        raise DataError(
            f"{files[0].parent}: {fault}. {AGAIN}, or remove what does not belong to it."
        )


def _number(name: str) -> int:
    """The number in a file's name, 0 where it has none."""
    match = _NUMBERED.fullmatch(name)
    return int(match["number"]) if match else 0


def _numbering_fault(names: Sequence[str]) -> str | None:
    matches = {name: _NUMBERED.fullmatch(name) for name in names}
    totals = {match and match["total"]: name for name, match in matches.items()}
    numbers: dict[int, str] = {}
    for name, match in matches.items():
        if match and (other := numbers.setdefault(int(match["number"]), name)) != name:
            return f"{other} and {name} have the same number"
    if not numbers:
        return None
    if len(totals) > 1:
        return f"{' and '.join(sorted(totals.values()))} are not numbered alike"
    (total,) = totals
    wanted = range(min(numbers), max(numbers) + 1) if total is None else range(int(total))
    for number in wanted:
        if number not in numbers:
            like = _NUMBERED.fullmatch(names[0])
            assert like is not None
            written = f"{number:0{len(like['number'])}}{like['of'] or ''}"
            digest = "-*" if like["digest"] else ""
            return f"{like['split']}-{written}{digest}.parquet is missing beside {names[0]}"
    beyond = sorted(numbers.keys() - set(wanted))
    return f"{numbers[beyond[0]]} has a number beyond the split's {total}" if beyond else None


def _check_columns(file: Path) -> None:
    """Refuse a file that is not parquet, or whose columns are not those of questions."""
    import pyarrow.parquet as parquet

    try:
        schema = parquet.read_schema(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DataError(_damaged([file], error)) from error
    kinds = dict(zip(schema.names, schema.types, strict=True))
    pictures = [name for name, kind in kinds.items() if _holds_bytes(kind)]
    for name, holds in _COLUMNS.items():
        if name not in kinds and (name != "image" or pictures):
            raise DataError(
                f"{file} has no column '{name}', which must hold {holds}; its columns are "
                f"{', '.join(kinds)}. Rename the one that is meant."
            )
        if name in kinds and not _fits(name, kinds[name]):
            raise DataError(
                f"{file}: the column '{name}' is of type {kinds[name]}, and must hold {holds}. "
                "Write the file anew with such a column."
            )


def _fits(name: str, kind: pyarrow.DataType) -> bool:
    """Whether a column of this type can hold what `_COLUMNS` says."""
    from pyarrow import types

    if name == "answer":
        return types.is_integer(kind)
    if name == "choices":
        return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if name == "image":
        return _holds_bytes(kind) or types.is_null(kind)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return types.is_binary(kind) or types.is_large_binary(kind)


def _rows(files: list[Path]) -> Iterator[dict[str, Any] | None]:
    """Each row, in order; None where a value of it cannot be read."""
    import pyarrow.parquet as parquet

    for file in files:
        try:
            # As a stream: by default a whole row group, with all its pictures, would be in memory.
            opened = parquet.ParquetFile(
                file, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True
            )
            columns = [name for name in opened.schema_arrow.names if name in (*_COLUMNS, *OPTIONAL)]
            for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for number in range(len(batch)):
                    yield _row(batch.slice(number, 1))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(_damaged([file], error)) from error


def _row(batch: pyarrow.RecordBatch) -> dict[str, Any] | None:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError):  # a text that is not UTF-8, a date that Python has not
        return None


def _damaged(files: list[Path], error: Exception) -> str:
    names = ", ".join(map(str, files))
    return (
        f"{names} cannot be read as parquet: {error}. {AGAIN}; where Git made the copy, "
        "'git lfs pull' fetches the files themselves."
    )


def _read_row(uid: str, row: dict[str, Any] | None) -> Sample | str:
    """The sample in a row, or the reason why it is left out."""
    if row is None:
        return UNREADABLE_ROW
    defect = question_defect(row, *OPTIONAL)
    if defect is not None:
        return defect
    stored = row.get("image")
    if is_absent(stored):
        return make_sample(uid, row, None)
    data = stored.get("bytes") if isinstance(stored, dict) else stored
    return make_sample(uid, row, Picture(data=data)) if data else MISSING_PICTURE
