"""ScienceQA as the Hugging Face hub has it (`derek-thomas/ScienceQA`): pictures inside the table.

<path>/data/<split>-*.parquet             splits train, validation, test
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import MISSING_PICTURE, Reading, files_below, question_defect
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.scienceqa import make_sample

HUB_ID = "derek-thomas/ScienceQA"
LAYOUT = """\
  <dataset.path>/data/<split>-*.parquet"""

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_COLUMNS = ["image", "question", "choices", "answer", "hint", "subject", "topic"]
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
    """

    name: ClassVar[str] = "scienceqa"
    root: Path | None
    origin: str

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
        if self.root is not None and not self._files(split):
            raise DataError(
                f"{self.place} has no data/{_SPLITS[split]}-*.parquet, which the split '{split}' "
                "is read from. Copy the repository again, with all files of its folder data."
            )

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
        return sorted((self.root / "data").glob(f"{_SPLITS.get(split, split)}-*.parquet"))


def is_hub_copy(folder: Path) -> bool:
    """Whether the folder looks like a copy of the hub's repository."""
    return any((folder / "data").glob("*.parquet"))


def download() -> Path:
    """The repository's folder in the hub's cache, downloaded if it is not there yet.

    Raises:
        DataError: it is neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(HUB_ID, repo_type="dataset", allow_patterns="data/*.parquet"))
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        raise DataError(
            f"dataset.path = '{HUB_ID}' is not in this machine's Hugging Face cache and cannot be "
            f"downloaded: {error}. Fetch it where there is a connection ('hf download --repo-type "
            f"dataset {HUB_ID}'), or set dataset.path to a folder with a copy of it."
        ) from error


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    for file in files:
        try:
            # As a stream: by default a whole row group, with all its pictures, would be in memory.
            opened = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
            for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=_COLUMNS):
                yield from batch.to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(_damaged([file], error)) from error


def _damaged(files: list[Path], error: Exception) -> str:
    names = ", ".join(map(str, files))
    return f"{names} cannot be read as parquet: {error}. Copy the repository again."


def _read_row(uid: str, row: dict[str, Any]) -> Sample | str:
    """The sample in a row, or the reason why it is left out."""
    defect = question_defect(row)
    if defect is not None:
        return defect
    stored = row["image"]
    if stored is None:
        return make_sample(uid, row, None)
    if not stored.get("bytes"):
        return MISSING_PICTURE
    return make_sample(uid, row, Picture(data=stored["bytes"]))
