"""results/real/runs.csv: what a finished run has found."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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

    def __str__(self) -> str:
        return " ".join(map(str, self))


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
