"""Questions as token ids: what the edge half embeds and the host scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano_flwr.data.sample import Sample


@dataclass(frozen=True)
class Question:
    """One sample, tokenized.

    Attributes:
        sample: where it came from.
        ids: (T,) int64 prompt tokens; a picture's placeholders are the model's image tokens.
        answer: tokens of the right answer: an option's letter, or a free answer and its end.
        options: token ids of all its options' letters; () for a free answer, and for `words`.
        geometry: how many patches its pictures have, where positions depend on it.
        learned: (T,) bool, which of `ids` the loss lies on as well: earlier answers of a dialogue,
            each with the token that ends its turn, where the chat template writes one.
        words: of a question with more options than there are letters, the tokens of each option
            and its end; `answer` is the right one's.
    """

    sample: Sample
    ids: Tensor
    answer: tuple[int, ...]
    options: tuple[int, ...]
    geometry: dict[str, Tensor]
    learned: Tensor
    words: tuple[tuple[int, ...], ...] = ()

    @property
    def longest_answer(self) -> int:
        """Tokens of its right answer, or of its longest option in words."""
        return max(map(len, (self.answer, *self.words)))


@dataclass(frozen=True)
class Limits:
    """How much of questions the language model's host takes; 0 is no limit.

    Attributes:
        request: most tokens in one request.
        sample: most tokens of one question with its answer, where positions have a learned table.
        answer: tokens of a generated answer.
    """

    request: int = 0
    sample: int = 0
    answer: int = 0

    def tokens(self, question: Question) -> int:
        """The most tokens that are sent of a question, in training as in scoring.

        The last token of an answer, given or generated, is not sent.
        """
        chosen = bool(question.options or question.words)
        return self.most(len(question.ids), question.longest_answer, chosen)

    def most(self, prompt: int, answer: int, chosen: bool) -> int:
        """As `tokens`, of a question with so many tokens.

        Args:
            answer: tokens of its longest answer.
            chosen: whether its answer is chosen among options, and not generated.
        """
        return prompt + max(answer, 0 if chosen else self.answer, 1) - 1

    def refusal(self, question: Question) -> str:
        """Why the host would refuse a question by itself; "" where it would not."""
        return self.reason(self.tokens(question))

    def reason(self, tokens: int) -> str:
        """Why the host would refuse a question of so many tokens; "" where it would not."""
        if self.sample and tokens > self.sample:
            return f"its {tokens} tokens are more than the {self.sample} positions of the model"
        if self.request and tokens > self.request:
            return f"its {tokens} tokens are more than llm.max-tokens = {self.request}"
        return ""


NO_LIMITS = Limits()


def used_tokens(questions: Iterable[Question]) -> list[int]:
    """All token ids that prompts, right answers and options in words consist of, ascending."""
    used: set[int] = set()
    for question in questions:
        used.update(question.ids.tolist(), question.answer, *question.words)
    return sorted(used)


def teacher_forced(questions: Sequence[Question]) -> list[tuple[int, ...]]:
    """What follows each prompt in training: its answer but for the last token."""
    return [question.answer[:-1] for question in questions]


def next_token_labels(questions: Sequence[Question], ignore: int) -> Tensor:
    """(N,) labels of a teacher-forced batch laid end to end: answers, and earlier ones' tokens."""
    labels = []
    for question in questions:
        earlier = question.ids.where(question.learned, ignore)[1:]
        labels += [earlier, torch.tensor(question.answer)]
    return torch.cat(labels)


def answer_positions(questions: Sequence[Question]) -> Tensor:
    """(P,) rows of a teacher-forced batch after which the answers' P tokens come, in order."""
    ends = last_positions(questions, teacher_forced(questions)).tolist()
    rows = [range(end + 1 - len(q.answer), end + 1) for q, end in zip(questions, ends, strict=True)]
    return torch.tensor([row for one in rows for row in one])


def last_positions(
    questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None = None
) -> Tensor:
    """(B,) rows of each question's last token in a batch laid one after another."""
    return torch.tensor(lengths(questions, endings)).cumsum(0) - 1


def lengths(
    questions: Sequence[Question], endings: Sequence[tuple[int, ...]] | None = None
) -> tuple[int, ...]:
    """Tokens of each question with what follows its prompt."""
    endings = endings or [()] * len(questions)
    return tuple(len(q.ids) + len(end) for q, end in zip(questions, endings, strict=True))
