"""Questions as token ids: what the edge half embeds and the host scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.data.images import open_image
from fednano_flwr.data.prompts import LETTERS, answer_letter, conversation
from fednano_flwr.data.sample import Sample


@dataclass(frozen=True)
class Question:
    """One sample, tokenized.

    Attributes:
        sample: where it came from.
        ids: (T,) int64 prompt tokens; a picture's placeholders are the model's image tokens.
        answer: token id of the right option's letter.
        options: token ids of all its options' letters.
    """

    sample: Sample
    ids: Tensor
    answer: int
    options: tuple[int, ...]


class QuestionEncoder:
    """Turns samples into questions with a model's own processor and chat template."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._letters: dict[str, tuple[int, ...]] = {}

    def encode(self, sample: Sample) -> Question:
        """Tokenize a sample; its picture is only measured here, not encoded.

        Raises:
            ValueError: an option letter is not a single token of this model.
        """
        prompt = self._processor.apply_chat_template(
            conversation(sample), add_generation_prompt=True, tokenize=False
        )
        pictures = {} if sample.image is None else {"images": [open_image(sample)]}
        ids = self._processor(text=[prompt], return_tensors="pt", **pictures)["input_ids"][0]
        letters = self._letter_ids(prompt)[: len(sample.choices)]
        return Question(sample, ids, letters[LETTERS.index(answer_letter(sample))], letters)

    def pixel_values(self, samples: list[Sample]) -> Tensor:
        """(images, 3, H, W) of samples that each have a picture."""
        pictures = [open_image(sample) for sample in samples]
        return self._processor.image_processor(pictures, return_tensors="pt")["pixel_values"]

    def _letter_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of the letters, as they follow this prompt's last line."""
        ending = prompt[-16:]
        if ending not in self._letters:
            tokenizer = self._processor.tokenizer
            space = "" if ending[-1].isspace() else " "
            before = tokenizer(ending, add_special_tokens=False)["input_ids"]
            ids = []
            for letter in LETTERS:
                after = tokenizer(ending + space + letter, add_special_tokens=False)["input_ids"]
                if after[:-1] != before:
                    raise ValueError(
                        f"option letter {letter} is not a single token after {ending!r}: "
                        "questions cannot be scored by their letters with this model"
                    )
                ids.append(after[-1])
            if len(set(ids)) != len(LETTERS):
                raise ValueError("two option letters are the same token for this model")
            self._letters[ending] = tuple(ids)
        return self._letters[ending]


def load_encoder(folder: str) -> QuestionEncoder:
    """Encoder with the processor saved in a model's folder."""
    from transformers import AutoProcessor

    return QuestionEncoder(AutoProcessor.from_pretrained(folder))


def next_token_labels(questions: list[Question], ignore: int) -> Tensor:
    """(N,) labels of a batch laid end to end: the answer follows each prompt's last token."""
    labels = [torch.full_like(question.ids, ignore) for question in questions]
    for label, question in zip(labels, questions, strict=True):
        label[-1] = question.answer
    return torch.cat(labels)


def last_positions(questions: list[Question]) -> Tensor:
    """(B,) rows of each question's last token in a batch laid one after another."""
    return torch.tensor([len(question.ids) for question in questions]).cumsum(0) - 1
