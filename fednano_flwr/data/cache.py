"""A data set's split as a table in the cache folder, so that only the first one to ask reads it.

    <cache>/questions/<name>-<split>-<digest>/questions.arrow
                                              skipped.json    ids left out, by reason
                                              images/         pictures that had no file of their own

The digest covers the name, size and time of change of every file that the split is read from: a
repaired or changed folder is read anew. These folders may be deleted when nothing runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fednano_flwr.base.files import write_once
from fednano_flwr.base.resources import cache_folder
from fednano_flwr.data.defects import sample_defect
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import with_copied_pictures
from fednano_flwr.data.reading import files_below
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources import Found
from fednano_flwr.data.table import Questions, read_table, write_table

FORMAT = 5
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
    """

    questions: Questions
    skipped: dict[str, list[str]]
    skipped_file: Path

    @property
    def counts(self) -> Counter[str]:
        return Counter({reason: len(pids) for reason, pids in self.skipped.items()})


def read_split(found: Found, split: str) -> Split:
    """The split, from the cache if it is there and the source's files are unchanged.

    Raises:
        DataError: the data set is malformed, or the cache folder cannot be written to.
    """
    title = re.sub(r"[^\w-]", "_", f"{found.name}-{split}")
    folder = cache_folder() / "questions" / f"{title}-{_digest(found, split)}"
    try:
        write_once(folder, lambda partial: _write(found, split, partial))
    except OSError as error:
        raise DataError(
            f"the questions of {found.place} cannot be written to {folder.parent}: {error}. "
            "Make room there, or set FEDNANO_CACHE to another folder."
        ) from error
    skipped_file = folder / "skipped.json"
    skipped = json.loads(skipped_file.read_text(encoding="utf-8"))
    return Split(read_table(folder / "questions.arrow"), skipped, skipped_file)


def _digest(found: Found, split: str) -> str:
    parts = (str(FORMAT), found.name, found.place, split, found.reader.settings)
    digest = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape"))
    for path in found.reader.files(split):
        for line in files_below(path):
            digest.update(os.fsencode(f"\n{line}"))
    return digest.hexdigest()[:16]


def _write(found: Found, split: str, folder: Path) -> None:
    skipped: dict[str, list[str]] = defaultdict(list)
    samples = (
        with_copied_pictures(sample, folder, all_pictures=False)
        for sample in _usable(found, split, skipped)
    )
    write_table(folder / "questions.arrow", samples)
    (folder / "skipped.json").write_text(json.dumps(skipped, indent=1), encoding="utf-8")


def _usable(found: Found, split: str, skipped: dict[str, list[str]]) -> Iterator[Sample]:
    """The samples of a split; ids of what is left out go to `skipped`."""
    from tqdm import tqdm

    reading = found.reader.read(split)
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
