"""How many questions the model answers, each by the likeliest of the 13 words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from fednano_demo.real.answers import Writer, answer_losses
from fednano_demo.real.easy import ANSWERS, Question
from fednano_demo.real.sheets import collate


class Accuracy(NamedTuple):
    """Questions answered rightly, questions asked and Σ −log p of right answers, by kind."""

    right: dict[str, int]
    asked: dict[str, int]
    loss: float

    @property
    def share(self) -> float:
        """Over all questions."""
        return sum(self.right.values()) / sum(self.asked.values())

    def by_kind(self) -> dict[str, float]:
        return {kind: self.right[kind] / asked for kind, asked in self.asked.items()}


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration,
    writer: Writer,
    features: Tensor,
    questions: Sequence[Sequence[Question]],
    options: bool,
    batch: int = 8,
) -> Accuracy:
    """Score the questions of each picture.

    Args:
        features: (n, 16, d), of pictures.
        questions: of each of the n pictures.
        options: whether the prompt lists the 13 words.
        batch: pictures in a pass.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    total = 0.0
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        sheets = [writer.sheet([(q, options) for q in own], every=True) for own in part]
        own_features = features[start : start + batch]
        losses = answer_losses(model, writer.image_token, own_features, collate(sheets))
        flat = [question for own in part for question in own]
        for question, row in zip(flat, losses.view(-1, len(ANSWERS)), strict=True):
            answer = ANSWERS.index(question.answer)
            right[question.kind] += int(row.argmin()) == answer
            asked[question.kind] += 1
            total += float(row[answer])
    return Accuracy({kind: right[kind] for kind in asked}, dict(asked), total / sum(asked.values()))
