"""Which files have the rows of a split."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fednano_flwr.data import parquet
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import entries, is_there
from fednano_flwr.data.rows import PICTURES, SUFFIXES, folders_in

LAYOUT = """\
  <dataset.path>   one file, with dataset.test-fraction above 0: {}
  <dataset.path>/<split>.jsonl   (or of another of these kinds)
  <dataset.path>/<split>-*.parquet
  <dataset.path>/data/<split>-*.parquet
  <dataset.path>/<split>/metadata.jsonl"""
"""Of a source; its kinds of files go in the braces."""
SPLITS = ("train", "test", "val", "valid", "validation", "dev", "eval")
"""What a file is called after, where it is one of a split."""


@dataclass(frozen=True)
class SplitFiles:
    """Files of rows in what `dataset.path` names: one file, or a folder.

    Args:
        path: the file or the folder.
        cuts: whether clients cut their test questions from their own (`dataset.test-fraction`):
            only then one file, which has no splits, is enough.
        named: of a folder, the files that may be called after their split.
        inner: of a folder, those in folders that may be called after their split.
        labels: of pictures in folders that are called after their labels, the labels of all splits.
    """

    path: Path
    cuts: bool
    named: tuple[Path, ...] = ()
    inner: Mapping[str, list[Path]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """What the files' names start from."""
        return self.path.parent if self.path.is_file() else self.path

    def name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def of(self, split: str) -> list[Path]:
        """The files of a split, in the order of their numbers.

        Raises:
            DataError: there are none, some are missing, or they are of several kinds.
        """
        if alone := self._alone():
            if self.cuts:
                return [alone]
            raise DataError(
                f"{alone} has no splits. Set dataset.test-fraction (0.2, say): each client is then "
                "tested on this share of its own rows. Or set dataset.path to a folder with a file "
                "for each split, such as train.jsonl and test.jsonl."
            )
        found = [file for file in self.named if f"{file.stem}-".startswith(f"{split}-")]
        found = found or self.inner.get(split, [])
        if not found:
            there = sorted({*map(_called_after, self.named), *self.inner})
            raise DataError(
                f"{self.path} has no split '{split}'; its files are called after "
                f"{', '.join(there)}. Set dataset.train-split and dataset.test-split to these, or "
                "dataset.test-fraction to test on a share of the training rows."
            )
        if len({file.suffix.lower() for file in found}) > 1:
            raise DataError(
                f"{self.path}: {', '.join(map(self.name, found))} are of several kinds, and only "
                f"one can be the split '{split}'. Remove what does not belong to it."
            )
        if len(found) > 1 and any(file.stem == split for file in found):
            raise DataError(
                f"{self.path}: {', '.join(map(self.name, found))} are all called '{split}'. Rename "
                f"those that do not belong to it; several files of a split are {split}-0, "
                f"{split}-1 and so on."
            )
        parquet.check_whole(found)
        return parquet.in_order(found)

    def _alone(self) -> Path | None:
        """The file that `path` names, or the only one in its folder where none is of a split."""
        if self.path.is_file() or self.path in self.named:
            return self.path
        if len(self.named) == 1 and not self.inner and _called_after(self.named[0]) not in SPLITS:
            return self.named[0]
        return None


def find_files(
    path: Path, cuts: bool, kinds: Collection[str] = SUFFIXES, labels: bool = False
) -> SplitFiles | None:
    """The files of rows at `path`; None where there is none.

    Args:
        kinds: their suffixes.
        labels: whether pictures in folders that are called after their labels will do, too.

    Raises:
        DataError: a folder cannot be read.
    """
    if path.is_file():
        return SplitFiles(path, cuts) if _has_rows(path, kinds) else None
    if is_saved(path):
        return None
    folders = [folder for folder in (path, path / "data") if folder.is_dir()]
    listed = [entry for folder in folders for entry in entries(folder)]
    there = [Path(entry.path) for entry in listed if not entry.name.startswith(".")]
    named = tuple(file for file in there if _has_rows(file, kinds))
    inner = {
        folder.name: files
        for folder in there
        if folder.is_dir() and folder not in folders and (files := _rows_in(folder, kinds))
    }
    if named or inner:
        return SplitFiles(path, cuts, named, inner)
    splits = {folder: _labels_in(folder) for folder in folders_in(path)} if labels else {}
    if found := {name for names in splits.values() for name in names}:
        inner = {folder.name: [folder] for folder, names in splits.items() if names}
        return SplitFiles(path, cuts, inner=inner, labels=tuple(sorted(found)))
    alone = _labels_in(path) if labels else []
    return SplitFiles(path, cuts, (path,), labels=tuple(alone)) if len(alone) > 1 else None


def is_saved(folder: Path) -> bool:
    """Whether it is what `datasets`' `save_to_disk` writes."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _called_after(file: Path) -> str:
    return file.stem.split("-")[0]


def _has_rows(file: Path, kinds: Collection[str]) -> bool:
    return file.suffix.lower() in kinds and is_there(file)


def _rows_in(folder: Path, kinds: Collection[str]) -> list[Path]:
    found = (Path(entry.path) for entry in entries(folder) if not entry.name.startswith("."))
    return [file for file in found if _has_rows(file, kinds)]


def _labels_in(folder: Path) -> list[str]:
    """Names of the folders in a folder that have a picture."""
    return [
        inner.name
        for inner in folders_in(folder)
        if any(entry.name.lower().endswith(PICTURES) for entry in entries(inner))
    ]
