"""results/real/runs.csv: a line a finished run, which is what a run need not be done again for."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fednano_flwr.base.files import replace_file


class Cell(NamedTuple):
    """One run of the study.

    Attributes:
        rate: of learning; None where nothing is trained.
        split: whose questions are scored: `val` to choose a rate, `test` for what is shown.
    """

    task: str
    method: str
    rate: float | None
    seed: int
    split: str


@dataclass(frozen=True)
class Row:
    """A finished run. Accuracies are percent; losses are nats a token of a right answer.

    Attributes:
        digest: of config, data and model.
        frozen: accuracy before training, over all clients' questions together; None with LoRA.
        accuracy: the same after the last round.
        mean_client, worst_client: of the clients' own questions, after the last round.
        loss: mean over clients, after the last round.
        train_loss: of the last round; None where nothing is trained.
        upload_kb_a_round, step_mb_a_round: of all clients; None where nothing is sent.
        peak_mb: most memory of the process that did it all.
        right, losses: of each question (`packed`); empty where they are not needed.
    """

    task: str
    method: str
    rate: float | None
    seed: int
    split: str
    digest: str
    commit: str
    frozen: float | None
    accuracy: float
    mean_client: float
    worst_client: float
    loss: float
    train_loss: float | None
    upload_kb_a_round: float | None
    step_mb_a_round: float | None
    seconds: float
    peak_mb: float
    questions: int
    right: str = ""
    losses: str = ""

    @property
    def cell(self) -> Cell:
        return Cell(self.task, self.method, self.rate, self.seed, self.split)


def read_rows(file: Path) -> list[Row]:
    """All rows; none where there is no file.

    Raises:
        ValueError: a line is not one of a row; the message names it.
    """
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    found = []
    for number, line in enumerate(lines, start=2):
        try:
            parsed = {one.name: _parsed(str(one.type), line[one.name]) for one in fields(Row)}
            found.append(Row(**parsed))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number} is no run of the study: {error!r}") from None
    return found


def add_row(file: Path, row: Row) -> None:
    """Append a row; one of the same cell, of another config, data or model, is replaced."""
    kept = [one for one in read_rows(file) if one.cell != row.cell]
    write_rows(file, [*kept, row])


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write all rows, as a whole or not at all."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [one.name for one in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, out.getvalue().encode())


def packed(right: Sequence[float], losses: Sequence[float]) -> tuple[str, str]:
    """Right or wrong of each question as bits in hex, and its loss in float16, in base64.

    Raises:
        ValueError: a score is neither right nor wrong.
    """
    if not set(right) <= {0.0, 1.0}:
        raise ValueError("a question is answered in part: its score needs more than a bit")
    bits = np.packbits(np.array(right, dtype=bool)).tobytes().hex()
    return bits, base64.b64encode(np.array(losses, dtype="<f2").tobytes()).decode()


def unpacked(row: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) right or wrong, and (n,) losses."""
    bits = np.frombuffer(bytes.fromhex(row.right), dtype=np.uint8)
    right = np.unpackbits(bits, count=row.questions).astype(float)
    losses = np.frombuffer(base64.b64decode(row.losses), dtype="<f2").astype(float)
    return right, losses


def _parsed(kind: str, text: str) -> Any:
    if kind.endswith("None") and not text:
        return None
    return {"str": str, "int": int, "float": float}[kind.split(" ")[0]](text)
