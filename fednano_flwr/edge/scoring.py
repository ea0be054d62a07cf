"""How well a client's test questions are answered, and how that is added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from unicodedata import normalize

import torch
from torch import Tensor

from fednano_flwr.data.metrics import exact
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.generation import answer_losses, generate, option_scores
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.prefetch import prefetch
from fednano_flwr.edge.questions import NO_LIMITS, Limits, Question, teacher_forced
from fednano_flwr.edge.training import batches
from fednano_flwr.exchange.protocol import LLM, FrozenBatch

ALL, WITH_PICTURE, TEXT_ONLY = "all", "with picture (IMG)", "text only"
WITH_SOUND = "with sound"
HOLDING = {"image": WITH_PICTURE, "audio": WITH_SOUND}
FREE_ANSWER = "free answer"
KINDS = (ALL, WITH_PICTURE, WITH_SOUND, TEXT_ONLY, FREE_ANSWER)
OTHER_SUBJECTS = "other subjects"
MOST_KINDS, LONGEST_KIND = 2000, 200
"""Entries of a tally, and characters of an entry's name: each has its lines in tables and its
figures at trackers."""
Tally = dict[str, list[float]]
"""Sum of the scores and number of questions, by what they have in common."""
Metric = Callable[[str, Sequence[str]], float]
"""From an answer and its references to 0 … 1."""
_Part = tuple[list[Question], FrozenBatch | None]
"""The questions of one kind in a batch, and their frozen part; None where there are none."""


class Score(NamedTuple):
    """How well one question is answered.

    Attributes:
        value: from 0 to 1.
        loss: Σ −log p over the right answer's tokens: of an option with a letter that letter, of
            another and of a free answer all with the end.
        tokens: their number.
    """

    value: float
    loss: float
    tokens: int


@torch.no_grad()
def score_questions(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    batch_size: int,
    metric: Metric = exact,
    max_answer_tokens: int = 8,
    limits: Limits = NO_LIMITS,
) -> list[Score]:
    """The score of each question.

    A question with options: 1 where the right one's letter is the likeliest among them, in one call
    that has its loss, too; with more options than letters, where all the right one's tokens
    together are, in as many sequences as there are options. A free answer: greedy generation, cut
    after `max_answer_tokens`, scored by the metric, and one call more for the loss. The next batch
    is embedded while the host works on one.

    Args:
        limits: of the host.

    Raises:
        FloatingPointError: a logit or a loss is not finite.
        ValueError: the metric's score is not from 0 to 1.
    """

    def prepare(batch: list[Question]) -> tuple[list[Question], _Part, _Part, FrozenBatch | None]:
        closed = [question for question in batch if question.options]
        free = [q for q in batch if not q.options and not q.words]
        one, other = ((part, edge.embed(part) if part else None) for part in (closed, free))
        for _, frozen in (one, other):
            if frozen is not None:
                llm.prepare(frozen)
        return batch, one, other, edge.embed(free, teacher_forced(free)) if free else None

    edge.adapters.eval()
    scores: list[Score] = []
    for batch, (closed, frozen), (free, prompts), forced in prefetch(
        batches(questions, batch_size, limits), prepare
    ):
        letters = iter(option_scores(edge, llm, closed, frozen) if frozen else [])
        answers = iter(generate(edge, llm, free, max_answer_tokens, prompts))
        losses = iter(answer_losses(edge, llm, free, forced) if forced else [])
        for question in batch:
            if question.options:
                scores.append(_of_letters(question, next(letters)))
            elif question.words:
                scores.append(
                    _of_words(question, word_losses(edge, llm, question, batch_size, limits))
                )
            else:
                value = _of_text(metric, question.sample, next(answers))
                scores.append(Score(value, next(losses), len(question.answer)))
    return scores


def word_losses(
    edge: NanoEdge, llm: LLM, question: Question, batch_size: int, limits: Limits = NO_LIMITS
) -> list[float]:
    """Σ −log p over the tokens of each of a question's options in words, with its end."""
    each = [replace(question, answer=word) for word in question.words]
    return [
        loss
        for part in batches(each, batch_size, limits)
        for loss in answer_losses(
            edge, llm, part, edge.embed(part, teacher_forced(part)), secret=False
        )
    ]


def _of_words(question: Question, losses: list[float]) -> Score:
    """
    Args:
        losses: of its K options.
    """
    right = question.words.index(question.answer)
    return Score(float(losses.index(min(losses)) == right), losses[right], len(question.answer))


def _of_letters(question: Question, likely: Tensor) -> Score:
    """
    Args:
        likely: (K,) log-probabilities of the letters.
    """
    right = question.options.index(question.answer[0])
    return Score(float(int(likely.argmax()) == right), -float(likely[right]), 1)


def _of_text(metric: Metric, sample: Sample, answer: str) -> float:
    # Tokenizers write an accent as a character of its own, or not; neither is another answer.
    said, *right = (
        normalize("NFC", text) for text in (answer, sample.free_answer, *sample.references)
    )
    value = float(metric(said, tuple(right)))
    if not 0 <= value <= 1:
        raise ValueError(f"dataset.metric: the score of question {sample.uid} is {value}")
    return value


def tally(samples: Iterable[Sample], scores: Sequence[float]) -> Tally:
    """Scores and questions: all, with pictures, sounds or neither, free answers, by subject."""
    counts: Tally = {}
    for sample, score in zip(samples, scores, strict=True):
        subject = _subject(sample.subject)
        if subject not in counts and len(counts) >= MOST_KINDS - len(KINDS):
            subject = OTHER_SUBJECTS
        shown = [HOLDING[modality] for modality in sample.media] or [TEXT_ONLY]
        kinds = (ALL, *shown, subject)
        for key in kinds if sample.num_options else (*kinds, FREE_ANSWER):
            entry = counts.setdefault(key, [0.0, 0])
            entry[0] += score
            entry[1] += 1
    return counts


def _subject(name: str) -> str:
    """The entry of a subject: never one of `KINDS`, and no longer than the server takes."""
    return (f"subject {name}" if name in KINDS else name)[:LONGEST_KIND]


def merged(tallies: Sequence[Mapping[str, Sequence[float]]]) -> Tally:
    """Sum of several clients' tallies, by key: the kinds first, then subjects by name."""
    total: Tally = {}
    for one in tallies:
        for key, (score, asked) in one.items():
            entry = total.setdefault(key, [0.0, 0])
            entry[0] += score
            entry[1] += asked
    order = {kind: place for place, kind in enumerate(KINDS)}
    return dict(sorted(total.items(), key=lambda item: (order.get(item[0], len(KINDS)), item[0])))
