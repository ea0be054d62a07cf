"""Questions to tensors without the processor's detours; what comes out is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fednano_demo.network import IMAGE_TOKENS
from fednano_demo.processor import PIXEL_MEAN, PIXEL_STD
from fednano_demo.questions import Question
from fednano_demo.words import (
    IMAGE,
    OPEN_ENDING,
    PAD,
    RIGHT,
    UNKNOWN,
    WRONG,
    split_words,
    vocabulary,
)
from fednano_flwr.data.prompts import LETTERS

VOCABULARY = vocabulary()
LETTER_IDS = torch.tensor([VOCABULARY[letter] for letter in LETTERS])


@dataclass(frozen=True)
class Encoded:
    """A question as token ids.

    Attributes:
        ids: the prompt; the model's next token is the answer.
        target: id of the right next token.
        verdicts: (position of an option's last word, id of RIGHT or WRONG) for every option.
    """

    ids: list[int]
    target: int
    verdicts: list[tuple[int, int]]


@dataclass(frozen=True)
class Batch:
    """Encoded questions, padded on the right, which a causal model without a mask can read.

    Attributes:
        ids: (n, T) int64.
        last: (n,) position of each prompt's last token.
        targets: (n,) id of each right next token.
        verdicts: (3, m) row, position and id of every option's verdict.
        pixels: (k, 3, 48, 48) float32 of those questions that have a picture, or None.
    """

    ids: Tensor
    last: Tensor
    targets: Tensor
    verdicts: Tensor
    pixels: Tensor | None


def _word_ids(text: str) -> list[int]:
    return [VOCABULARY.get(word, VOCABULARY[UNKNOWN]) for word in split_words(text)]


def encode(question: Question) -> Encoded:
    """The prompt with all its options, answered by a letter."""
    ids = [VOCABULARY[IMAGE]] * (IMAGE_TOKENS if question.picture is not None else 0)
    ids += _word_ids(question.text)
    verdicts = []
    for index, (letter, choice) in enumerate(zip(LETTERS, question.choices, strict=False)):
        ids += [VOCABULARY[letter], *_word_ids(choice)]
        verdict = RIGHT if index == question.answer else WRONG
        verdicts.append((len(ids) - 1, VOCABULARY[verdict]))
    ids.append(VOCABULARY["Answer"])
    return Encoded(ids, VOCABULARY[LETTERS[question.answer]], verdicts)


def encode_open(question: Question) -> Encoded:
    """The prompt without options, answered by the right word; for pretraining only."""
    ids = [VOCABULARY[IMAGE]] * (IMAGE_TOKENS if question.picture is not None else 0)
    ids += _word_ids(question.text) + _word_ids(OPEN_ENDING)
    return Encoded(ids, VOCABULARY[question.choices[question.answer]], [])


def pixel_values(pictures: Sequence[np.ndarray]) -> Tensor:
    """(n, 48, 48, 3) uint8 pictures as the (n, 3, 48, 48) float32 input of the vision tower."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def collate(questions: Sequence[Question], encoded: Sequence[Encoded]) -> Batch:
    """Pad encoded questions to one length and gather their pictures."""
    length = max(len(item.ids) for item in encoded)
    pad = VOCABULARY[PAD]
    ids = torch.tensor([item.ids + [pad] * (length - len(item.ids)) for item in encoded])
    verdicts = [(row, *pair) for row, item in enumerate(encoded) for pair in item.verdicts]
    pictures = [q.picture for q in questions if q.picture is not None]
    return Batch(
        ids=ids,
        last=torch.tensor([len(item.ids) - 1 for item in encoded]),
        targets=torch.tensor([item.target for item in encoded]),
        verdicts=torch.tensor(verdicts, dtype=torch.int64).reshape(-1, 3).T,
        pixels=pixel_values(pictures) if pictures else None,
    )
