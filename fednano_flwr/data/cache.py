"""A dataset's split as a table in the cache folder, so that only the first one to ask reads it.

    <cache>/questions/<dataset>-<split>-<digest>/questions.arrow
                                                 skipped.json      ids left out, by reason

The digest covers the name, size and time of change of every file that the split is read from: a
repaired or changed folder is read anew. Any of these folders may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fednano_flwr.base.resources import cache_folder
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import Reading, Source, sample_defect
from fednano_flwr.data.sample import Questions, Sample
from fednano_flwr.data.table import read_table, write_table

FORMAT = 2
"""Of the tables and of what is read into them; raise it with every change of either."""
SILENT_SECONDS = 3.0
"""Reading for longer than this shows its progress."""
LOGGED_SECONDS = 10.0
"""Between two lines of progress where they go to a log."""


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

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


def read_split(source: Source, split: str) -> Split:
    """The split, from the cache if it is there and the source's files are unchanged.

    Safe against a process that dies half-way and against several that start at once: the table is
    written beside its place and renamed, and whoever comes second discards its copy.

    Raises:
        DataError: the source is malformed, or the cache folder cannot be written to.
    """
    target = cache_folder() / "questions" / f"{source.name}-{split}-{_digest(source, split)}"
    if not target.exists():
        try:
            _write(source, split, target)
        except OSError as error:
            raise DataError(
                f"the questions of {source.place} cannot be written to {target.parent}: {error}. "
                "Make room there, or set FEDNANO_CACHE to another folder."
            ) from error
    skipped_file = target / "skipped.json"
    skipped = json.loads(skipped_file.read_text(encoding="utf-8"))
    return Split(read_table(target / "questions.arrow"), skipped, skipped_file)


def _digest(source: Source, split: str) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n{source.name}\n{source.place}\n{split}\n".encode())
    for line in source.identity(split):
        digest.update(os.fsencode(f"{line}\n"))
    return digest.hexdigest()[:16]


def _write(source: Source, split: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    skipped: dict[str, list[str]] = defaultdict(list)
    try:
        reading = source.read(split)
        samples = _usable(reading, skipped, f"reading {source.name} {split}")
        write_table(partial / "questions.arrow", samples)
        (partial / "skipped.json").write_text(json.dumps(skipped, indent=1), encoding="utf-8")
        os.rename(partial, target)
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _usable(reading: Reading, skipped: dict[str, list[str]], title: str) -> Iterator[Sample]:
    """The samples of a reading; what it leaves out goes to `skipped`."""
    from tqdm import tqdm

    shown = tqdm(
        reading.problems,
        desc=title,
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
