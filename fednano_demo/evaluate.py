"""Accuracy of the demo model, skill by skill."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from fednano_demo.encode import LETTER_IDS, collate, encode
from fednano_demo.questions import Question


def right_answers(letter_logits: Tensor, questions: Sequence[Question]) -> list[bool]:
    """Whether the best of the offered letters is the right one.

    Args:
        letter_logits: (n, 10), logits of the letters A to J after each prompt.
    """
    return [
        int(logits[: len(q.choices)].argmax()) == q.answer
        for logits, q in zip(letter_logits, questions, strict=True)
    ]


@torch.no_grad()
def accuracy_by_skill(
    model: LlavaForConditionalGeneration, questions: Sequence[Question], batch_size: int = 256
) -> dict[str, float]:
    """Share of right answers for every skill among `questions`."""
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(questions), batch_size):
        part = questions[start : start + batch_size]
        batch = collate(part, [encode(q) for q in part])
        hidden = model.model(
            input_ids=batch.ids, pixel_values=batch.pixels, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden[torch.arange(len(part)), batch.last])[:, LETTER_IDS]
        for question, ok in zip(part, right_answers(logits, part), strict=True):
            right[question.skill].append(ok)
    return {skill: sum(marks) / len(marks) for skill, marks in right.items()}


def mean_accuracy(by_skill: dict[str, float], skills: Sequence[str]) -> float:
    """The plain mean over some of the skills."""
    return sum(by_skill[skill] for skill in skills) / len(skills)
