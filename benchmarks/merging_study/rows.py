"""results/merging/runs.csv: what a finished run has found."""

from __future__ import annotations

import statistics
from dataclasses import asdict, astuple, dataclass, fields

from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.results import run_row
from fednano_flwr.analysis.experiments.store import lacking, read_ended

MANY = 50
"""Clients; from so many on the worst client is the mean of the lowest tenth."""
LAST = 2
"""Rounds at the end whose mean accuracy chooses a rate."""


@dataclass(frozen=True)
class Cell:
    """One run of the study.

    Attributes:
        method: an experiment's file in conf/ or conf/merging/, without its ending.
        options: `KEY=VALUE` beside the experiment's, joined by blanks.
        seed: as planned; where it cannot be dealt, another takes its place (`Row.dealt_seed`).
        split: whose questions are scored: `val` to choose a rate, `test` for what is shown.
    """

    task: str
    method: str
    options: str
    clients: int
    alpha: float
    rate: float
    seed: int
    split: str

    def __str__(self) -> str:
        return " ".join(str(value) for value in astuple(self) if value != "")


@dataclass(frozen=True)
class Row(Cell):
    """A finished run. Accuracies are percent of the clients' own questions, after the last round.

    No question's score is kept, but each client's right answers: a seed draws its questions anew,
    so that the spread over seeds includes their draw.

    Attributes:
        digest: of config, questions and model.
        accuracy: mean over clients.
        together: of all clients' questions together.
        worst_client: the lowest, or of `MANY` clients the mean of the lowest tenth.
        by_round: mean over clients in each round from 0 on, joined by blanks.
        by_client: right answers / questions of each client, joined by blanks.
        upload_kb_a_round, step_mb_a_round: of all clients together.
        epsilon: spent in all rounds; None without differential privacy.
    """

    dealt_seed: int
    digest: str
    commit: str
    accuracy: float
    together: float
    worst_client: float
    by_round: str
    by_client: str
    upload_kb_a_round: float
    step_mb_a_round: float
    epsilon: float | None
    seconds: float

    @property
    def cell(self) -> Cell:
        return Cell(*(getattr(self, one.name) for one in fields(Cell)))

    @property
    def rounds(self) -> list[float]:
        """Accuracy in each round from 0 on."""
        return list(map(float, self.by_round.split()))

    @property
    def last_rounds(self) -> float:
        """What chooses a rate: the mean accuracy of the last rounds."""
        return statistics.fmean(self.rounds[-LAST:])


def row_of(cell: Cell, run: PlannedRun, digest: str, commit: str, seconds: float) -> Row:
    """What a run has left, as a row.

    Raises:
        ValueError: it lacks a round, or a client's score in one.
        OSError: it has left what cannot be read.
    """
    if (ended := read_ended(run)) is None:
        raise ValueError("not all of its rounds are there")
    if missing := lacking(ended, run.clients):
        raise ValueError(missing)
    shares = [list(record["accuracy_per_client"].values()) for record in ended.rounds]
    for number, each in enumerate(shares):
        if len(each) < run.clients or None in each:
            raise ValueError(f"round {number} lacks a client's accuracy")
    known, last = run_row(run, ended), ended.rounds[-1]
    asked = [last["test_questions_per_client"][who] for who in last["accuracy_per_client"]]
    right = [share * n for share, n in zip(shares[-1], asked, strict=True)]
    if any(abs(count - round(count)) > 1e-6 for count in right):
        raise ValueError("a question is answered in part, so that right answers cannot be counted")
    lowest = sorted(shares[-1])[: run.clients // 10 if run.clients >= MANY else 1]
    return Row(
        **asdict(cell),
        dealt_seed=run.seed,
        digest=digest,
        commit=commit,
        accuracy=known["last"],
        together=known["all"],
        worst_client=100 * statistics.fmean(lowest),
        by_round=" ".join(f"{100 * statistics.fmean(each):.4f}" for each in shares),
        by_client=" ".join(f"{hits:.0f}/{n}" for hits, n in zip(right, asked, strict=True)),
        upload_kb_a_round=known["upload_kb_a_round"],
        step_mb_a_round=known["step_mb_a_round"],
        epsilon=last["merge"].get("epsilon"),
        seconds=seconds,
    )
