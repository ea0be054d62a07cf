"""The one form in which every dataset reaches the rest of the project."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One multiple-choice question.

    Attributes:
        uid: unique within its dataset, stable between runs and machines.
        question: the question as the dataset has it.
        choices: the options, in the dataset's order; at least two.
        answer: index of the right option in `choices`.
        group: what Dirichlet partitioning splits by (a skill, a topic, a grade and task).
        image: file of the picture, or None for a text-only question.
        context: text given with the question (ScienceQA's `hint`), or "".
    """

    uid: str
    question: str
    choices: tuple[str, ...]
    answer: int
    group: str
    image: Path | None = None
    context: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """What a loader read: the questions, and how many it left out for which reason."""

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    skipped: Counter[str] = field(default_factory=Counter)
