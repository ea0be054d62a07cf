"""Whether a client's test questions are answered right, and how that is added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fednano_flwr.data.prompts import normalise_answer
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.generation import generate, option_scores
from fednano_flwr.edge.nano_edge import FrozenBatch, NanoEdge
from fednano_flwr.edge.prefetch import prefetch
from fednano_flwr.edge.questions import NO_LIMITS, Limits, Question
from fednano_flwr.edge.training import batches
from fednano_flwr.exchange.protocol import LLM

ALL, WITH_PICTURE, TEXT_ONLY = "all", "with picture (IMG)", "text only"
KINDS = (ALL, WITH_PICTURE, TEXT_ONLY)
OTHER_SUBJECTS = "other subjects"
MOST_KINDS, LONGEST_KIND = 2000, 200
"""Entries of a tally, and characters of an entry's name: each has its lines in tables and its
figures at trackers."""
Tally = dict[str, list[int]]
"""Right answers and questions, by what they have in common."""
_Part = tuple[list[Question], FrozenBatch | None]
"""The questions of one kind in a batch, and their frozen part; None where there are none."""


@torch.no_grad()
def right_answers(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    batch_size: int,
    max_answer_tokens: int = 8,
    limits: Limits = NO_LIMITS,
) -> list[bool]:
    """Whether each question is answered right.

    A question with options: the right one's letter has the highest logit among them, in one call.
    A free answer: greedy generation, cut after `max_answer_tokens`, is the right text, both
    normalised. The next batch is embedded while the host works on one.

    Args:
        limits: of the host.

    Raises:
        FloatingPointError: a logit is not finite.
    """

    def prepare(batch: list[Question]) -> tuple[list[Question], _Part, _Part]:
        closed = [question for question in batch if question.options]
        free = [question for question in batch if not question.options]
        one, other = ((part, edge.embed(part) if part else None) for part in (closed, free))
        return batch, one, other

    edge.adapters.eval()
    correct: list[bool] = []
    for batch, (closed, frozen), (free, prompts) in prefetch(
        batches(questions, batch_size, limits), prepare
    ):
        letters = iter(option_scores(edge, llm, closed, frozen) if frozen else [])
        answers = iter(generate(edge, llm, free, max_answer_tokens, prompts))
        for question in batch:
            if question.options:
                likeliest = question.options[int(next(letters).argmax())]
                correct.append(likeliest == question.answer[0])
            else:
                wanted = normalise_answer(question.sample.free_answer)
                correct.append(normalise_answer(next(answers)) == wanted)
    return correct


def tally(samples: Sequence[Sample], correct: Sequence[bool]) -> Tally:
    """Right answers and questions: all, with and without pictures, by subject (or skill)."""
    counts: Tally = {}
    for sample, right in zip(samples, correct, strict=True):
        subject = _subject(sample.subject)
        if subject not in counts and len(counts) >= MOST_KINDS - len(KINDS):
            subject = OTHER_SUBJECTS
        for key in (ALL, WITH_PICTURE if sample.pictures else TEXT_ONLY, subject):
            entry = counts.setdefault(key, [0, 0])
            entry[0] += right
            entry[1] += 1
    return counts


def _subject(name: str) -> str:
    """The entry of a subject: never one of `KINDS`, and no longer than the server takes."""
    return (f"subject {name}" if name in KINDS else name)[:LONGEST_KIND]


def merged(tallies: Sequence[Mapping[str, Sequence[int]]]) -> Tally:
    """Sum of several clients' tallies, by key: the kinds first, then subjects by name."""
    total: Tally = {}
    for one in tallies:
        for key, (right, asked) in one.items():
            entry = total.setdefault(key, [0, 0])
            entry[0] += right
            entry[1] += asked
    order = {kind: place for place, kind in enumerate(KINDS)}
    return dict(sorted(total.items(), key=lambda item: (order.get(item[0], len(KINDS)), item[0])))
