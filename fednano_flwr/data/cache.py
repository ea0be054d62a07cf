"""A data set's split as a table in the cache folder, so that only the first one to ask reads it.

    <cache>/questions/<name>-<split>-<digest>/questions.arrow
                                              skipped.json    ids left out, by reason
                                              reading.json    columns, and files not found
                                              images/, audio/ what had no file of its own

The digest covers the name, size and times of change of every file that the split is read from: a
repaired or changed folder is read anew, and so is one where a missing file is there now. These
folders may be deleted when nothing runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fednano_flwr.base.files import write_once
from fednano_flwr.base.resources import cache_folder
from fednano_flwr.data.defects import (
    MISSING_PICTURE,
    MISSING_SOUND,
    missing_files,
    sample_defect,
)
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.media import with_copied_files
from fednano_flwr.data.reading import files_below, is_there
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources import Found, Reading
from fednano_flwr.data.table import Questions, read_table, write_table

FORMAT = 9
"""Of the tables and of what is read into them; raise it with every change of either."""
SILENT_SECONDS = 3.0
"""Reading for longer than this shows its progress."""
LOGGED_SECONDS = 10.0
"""Between two lines of progress where they go to a log."""


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        questions: those that can be used.
        skipped: ids of the others, by reason.
        skipped_file: where these are written down.
        columns: which column was read as what, for people; "" where the layout fixes it.
        missing: files of pictures and sounds that are not there.
    """

    questions: Questions
    skipped: dict[str, list[str]]
    skipped_file: Path
    columns: str
    missing: list[str]

    @property
    def counts(self) -> Counter[str]:
        return Counter({reason: len(pids) for reason, pids in self.skipped.items()})


def read_split(found: Found, split: str) -> Split:
    """The split, from the cache if it is there and the source's files are unchanged.

    Raises:
        DataError: the data set is malformed, or the cache folder cannot be written to.
    """
    title, digest = re.sub(r"[^\w-]", "_", f"{found.name}-{split}"), _digest(found, split)
    while True:
        folder = cache_folder() / "questions" / f"{title}-{digest}"
        try:
            write_once(folder, lambda partial: _write(found, split, partial))
        except OSError as error:
            raise DataError(
                f"the questions of {found.place} cannot be written to {folder.parent}: {error}. "
                "Make room there, or set FEDNANO_CACHE to another folder."
            ) from error
        reading = _read_json(folder / "reading.json")
        if not (repaired := [name for name in reading["missing"] if is_there(Path(name))]):
            break
        digest = _sha256([digest, *repaired])
    skipped_file, table = folder / "skipped.json", read_table(folder / "questions.arrow")
    skipped = _read_json(skipped_file)
    return Split(table, skipped, skipped_file, reading["columns"], reading["missing"])


def _digest(found: Found, split: str) -> str:
    parts = (str(FORMAT), found.name, found.place, split, found.reader.settings)
    files = (line for path in found.reader.files(split) for line in files_below(path))
    return _sha256(chain(parts, files))


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(os.fsencode(f"{line}\n"))
    return digest.hexdigest()[:16]


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(found: Found, split: str, folder: Path) -> None:
    skipped: dict[str, list[str]] = defaultdict(list)
    missing: list[str] = []
    reading = found.reader.read(split)
    if reading.columns:
        print(f"{found.name} {split}: {reading.columns}", file=sys.stderr)
    samples = (
        with_copied_files(sample, folder, all_files=False)
        for sample in _usable(found, split, reading, skipped, missing)
    )
    write_table(folder / "questions.arrow", samples)
    about = {"columns": reading.columns, "missing": missing}
    for name, content in {"skipped.json": skipped, "reading.json": about}.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _usable(
    found: Found, split: str, reading: Reading, skipped: dict[str, list[str]], missing: list[str]
) -> Iterator[Sample]:
    """The samples of a split; ids of others go to `skipped`, files not found to `missing`."""
    from tqdm import tqdm

    shown = tqdm(
        reading.problems,
        desc=f"reading {found.name} {split}",
        total=reading.total,
        unit=" questions",
        delay=SILENT_SECONDS,
        mininterval=0.1 if sys.stderr.isatty() else LOGGED_SECONDS,
        file=sys.stderr,
    )
    for pid, read in shown:
        reason = sample_defect(read) if isinstance(read, Sample) else read
        if reason is None:
            yield read
        else:
            skipped[reason].append(pid.encode("utf-8", "backslashreplace").decode())
            if reason in (MISSING_PICTURE, MISSING_SOUND) and isinstance(read, Sample):
                missing += (str(file.path) for file in missing_files(read))
