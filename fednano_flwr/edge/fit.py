"""Questions of at most `dataset.max-tokens` tokens: longer ones are left out, or their text is cut.

Cut are, until a question fits: the end of its context, then the start of its question. Of a
dialogue: the oldest exchanges without a picture or a sound, whole; then the start of what the user
says, the oldest first. A word stays of every text that is cut. Pictures, sounds, options,
instructions and answers are never cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import SampleError
from fednano_flwr.data.sample import Sample, Turn
from fednano_flwr.edge.questions import Question

_WORD = re.compile(r"\S{1,20}\s*")
"""What is cut as a whole; of a text without spaces, so many characters."""


class Encoder(Protocol):
    """What turns samples into questions."""

    def encode(self, sample: Sample) -> Question: ...
    def count(self, text: str) -> int:
        """Tokens of a text by itself."""


@dataclass(frozen=True)
class Fit:
    """How long questions may be.

    Attributes:
        tokens: most of a question with its answer, pictures and sounds included; 0: no limit.
        cut: whether longer ones are cut, and not left out.
    """

    tokens: int = 0
    cut: bool = False

    @classmethod
    def of(cls, dataset: Dataset) -> Fit:
        return cls(dataset.max_tokens, dataset.too_long == "cut")

    def encode(self, encoder: Encoder, sample: Sample) -> Question:
        """The question; where it had to be cut, its `sample` is another one.

        Raises:
            SampleError: it cannot be used with this model, or is too long.
        """
        question = encoder.encode(sample)
        while self.tokens and (over := _tokens(question) - self.tokens) > 0:
            shorter = shortened(question.sample, over, encoder.count) if self.cut else None
            if shorter is None:
                raise SampleError(
                    f"its {_tokens(question)} tokens are more than dataset.max-tokens = "
                    f"{self.tokens}" + (", and no more can be cut" if self.cut else "")
                )
            question = encoder.encode(shorter)
        return question


UNLIMITED = Fit()


def shortened(sample: Sample, over: int, count: Callable[[str], int]) -> Sample | None:
    """The sample with about `over` tokens less; None where nothing more can be cut.

    Args:
        count: tokens of a text.
    """
    if sample.turns:
        turns = _without_an_exchange(sample.turns) or _with_less_said(sample.turns, over, count)
        return replace(sample, turns=turns, question=turns[-1].text) if turns else None
    if sample.context:
        words = _WORD.findall(sample.context)
        return replace(sample, context="".join(words[: _kept(words, over, count)]).rstrip())
    question = _end(sample.question, over, count)
    return None if question is None else replace(sample, question=question)


def _without_an_exchange(turns: tuple[Turn, ...]) -> tuple[Turn, ...] | None:
    """Without the oldest turn of the user without a picture or a sound, and the answer to it."""
    asked = [n for n, turn in enumerate(turns) if turn.role == "user"]
    for start, stop in pairwise(asked):
        if not any(turn.places for turn in turns[start:stop]):
            return turns[:start] + turns[stop:]
    return None


def _with_less_said(
    turns: tuple[Turn, ...], over: int, count: Callable[[str], int]
) -> tuple[Turn, ...] | None:
    for n, turn in enumerate(turns):
        for place, part in enumerate(turn.parts if turn.role == "user" else ()):
            if isinstance(part, str) and (shorter := _end(part, over, count)) is not None:
                parts = (*turn.parts[:place], shorter, *turn.parts[place + 1 :])
                return (*turns[:n], replace(turn, parts=parts), *turns[n + 1 :])
    return None


def _end(text: str, over: int, count: Callable[[str], int]) -> str | None:
    """The end of a text; None where only a word is left."""
    words = _WORD.findall(text)
    return "".join(words[-max(1, _kept(words, over, count)) :]) if len(words) > 1 else None


def _kept(words: list[str], over: int, count: Callable[[str], int]) -> int:
    """How many of a text's words stay, without about `over` tokens of it; fewer than there are."""
    tokens = count("".join(words))
    return max(0, min(len(words) - 1, len(words) * (tokens - over) // max(1, tokens)))


def _tokens(question: Question) -> int:
    return len(question.ids) + question.longest_answer
