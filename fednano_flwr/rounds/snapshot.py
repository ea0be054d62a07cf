"""A run's progress, written by its ServerApp and read by `fednano run`: a small file, or a line.

The command line reads it without importing torch or Flower, unlike `progress.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

PROGRESS_FILE = "FEDNANO_PROGRESS"
"""Environment variable: the file that a ServerApp writes; without it, it prints lines."""


@dataclass(frozen=True)
class Snapshot:
    """A run's progress.

    Attributes:
        round: of `rounds`; None outside of rounds.
        phase: as in "training".
        asked, done, failed: clients; those neither done nor failed still owe a reply.
        steps: calls that the language model has computed in this phase.
        per_second: steps per second of the phase.
        accuracy: mean score of the questions so far in this evaluation (`so_far`); else that of
            the last round; None before there is any.
        label: of the metric.
        loss: of the clients that have trained in this round, else the last round's.
        test_loss: as `accuracy`, the mean loss of the answers' tokens.
        left: seconds until the run's end, estimated from the rounds so far.
        waiting: who is waited for, if no step was made for a while; else "".
    """

    round: int | None
    rounds: int
    phase: str
    asked: int = 0
    done: int = 0
    failed: int = 0
    steps: int = 0
    per_second: float = 0.0
    accuracy: float | None = None
    label: str = ""
    so_far: bool = False
    loss: float | None = None
    test_loss: float | None = None
    left: float | None = None
    waiting: str = ""

    @property
    def line(self) -> str:
        """`round  3  training: 4 of 10 clients done, 812 steps, 1.2 a second`."""
        where = "" if self.round is None else f"round {self.round:>2}  "
        return f"{where}{self.phase}: {self.clients(' done')}, {self.pace}"

    def clients(self, done: str = "") -> str:
        """`4 of 10 clients`, with the number of failed ones; `done` follows "clients"."""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done} of {self.asked} clients{done}{failed}"

    @property
    def pace(self) -> str:
        if not self.steps:
            return "no step yet"
        digits = 1 if self.per_second >= 1 else 2
        return f"{self.steps:,} steps, {self.per_second:.{digits}f} a second"


def write(file: Path, snapshot: Snapshot) -> None:
    """Replace the file as a whole; it need not survive a loss of power.

    Raises:
        OSError: the folder is gone, or the disk is full.
    """
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(snapshot)), encoding="utf-8")
    partial.replace(file)


def read(file: Path) -> Snapshot | None:
    """The file's progress; None if there is none or another version wrote it."""
    try:
        return Snapshot(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
