"""Questions as token ids: what the edge half embeds and the host scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.data.images import content_digest, open_image
from fednano_flwr.data.prompts import LETTERS, answer_text
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.prompting import prompting_for
from fednano_flwr.models.checkpoint import Checkpoint
from fednano_flwr.models.processor import load_processor

TEXT_TENSORS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels"}
GEOMETRY = {"image_grid_thw"}


@dataclass(frozen=True)
class Question:
    """One sample, tokenized.

    Attributes:
        sample: where it came from.
        ids: (T,) int64 prompt tokens; a picture's placeholders are the model's image tokens.
        answer: tokens of the right answer: an option's letter, or a free answer and its end.
        options: token ids of all its options' letters; () for a free answer.
        geometry: how many patches its pictures have, where positions depend on it.
    """

    sample: Sample
    ids: Tensor
    answer: tuple[int, ...]
    options: tuple[int, ...]
    geometry: dict[str, Tensor]


class QuestionEncoder:
    """Turns samples into questions with a model's own processor and prompt.

    Args:
        model_type: of the model's config.
        processor: of the model.
        ends: tokens that end a generated answer, beside the tokenizer's own.

    Raises:
        ConfigError: the processor lacks what prompts need.
    """

    def __init__(self, model_type: str, processor: Any, ends: Iterable[int] = ()) -> None:
        self._processor = processor
        self.end: int = processor.tokenizer.eos_token_id
        self.ends = {self.end, *ends}
        self._prompting = prompting_for(model_type, processor)
        self._letters: dict[str, tuple[int, ...]] = {}

    def encode(self, sample: Sample) -> Question:
        """Tokenize a sample; its pictures are only measured here, not encoded.

        Raises:
            ValueError: an option letter is not a single token of this model.
        """
        question = self.unanswered(sample)
        answer: tuple[int, ...]
        if sample.num_options:
            answer = (question.options[LETTERS.index(answer_text(sample))],)
        else:
            written = self._prompting.write(sample)
            answer = (*self._continuation(written, answer_text(sample)), self.end)
        return replace(question, answer=answer)

    def unanswered(self, sample: Sample) -> Question:
        """As `encode`, but for the answer, which need not be known: its tokens are ().

        Raises:
            ValueError: an option letter is not a single token of this model.
        """
        prompt = self._prompting.write(sample)
        tensors = self._tensors(sample, prompt)
        options = self._letter_ids(prompt)[: sample.num_options] if sample.num_options else ()
        geometry = {key: tensors[key] for key in GEOMETRY & tensors.keys()}
        return Question(sample, tensors["input_ids"][0], (), options, geometry)

    def vision_inputs(self, sample: Sample) -> dict[str, Tensor]:
        """What the vision encoder takes of a sample that has pictures."""
        tensors = self._tensors(sample, self._prompting.write(sample))
        return {key: value for key, value in tensors.items() if key not in TEXT_TENSORS}

    def vision_key(self, sample: Sample) -> str:
        """Digest of all that `vision_inputs` depends on in a sample; no picture is decoded."""
        digest = hashlib.sha256()
        for picture in sample.pictures:
            digest.update(content_digest(picture))
        digest.update(str(self._prompting.encoder_ids(sample)).encode())
        return digest.hexdigest()

    @property
    def processor_classes(self) -> tuple[str, str]:
        """Which code prepares pictures: it depends on what is installed, too."""
        return type(self._processor).__name__, type(self._processor.image_processor).__name__

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer's tokens."""
        return self._processor.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _tensors(self, sample: Sample, prompt: str) -> dict[str, Tensor]:
        return self._prompting.tensors(prompt, [open_image(p) for p in sample.pictures])

    def _letter_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of the letters, as they follow this prompt's last line."""
        ending = prompt[-16:]
        if ending not in self._letters:
            written = [self._continuation(prompt, letter) for letter in LETTERS]
            for letter, tokens in zip(LETTERS, written, strict=True):
                if len(tokens) != 1:
                    raise ValueError(
                        f"option letter {letter} is not a single token after {ending!r}: "
                        "questions cannot be scored by their letters with this model"
                    )
            ids = tuple(tokens[0] for tokens in written)
            if len(set(ids)) != len(LETTERS):
                raise ValueError("two option letters are the same token for this model")
            self._letters[ending] = ids
        return self._letters[ending]

    def _continuation(self, prompt: str, text: str) -> tuple[int, ...]:
        """Tokens of `text` as they follow this prompt's last line."""
        tokenizer, ending = self._processor.tokenizer, prompt[-16:]
        space = "" if ending[-1].isspace() else " "
        before = tokenizer(ending, add_special_tokens=False)["input_ids"]
        after = tokenizer(ending + space + text, add_special_tokens=False)["input_ids"]
        if after[: len(before)] != before or len(after) == len(before):
            raise ValueError(
                f"{text!r} after {ending!r} changes how that is tokenized: this model's answers "
                "cannot be told apart from its prompts"
            )
        return tuple(after[len(before) :])


def load_encoder(checkpoint: Checkpoint) -> QuestionEncoder:
    """Encoder with the processor of a model, or of an edge bundle."""
    processor = load_processor(checkpoint.folder)
    return QuestionEncoder(checkpoint.config.model_type, processor, _ends(checkpoint.folder))


def _ends(folder: Path) -> list[int]:
    """End tokens by the model's generation config, where it has one: chats may end otherwise."""
    file = folder / "generation_config.json"
    found = json.loads(file.read_text("utf-8")).get("eos_token_id") if file.is_file() else None
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def used_tokens(questions: Sequence[Question]) -> list[int]:
    """All token ids that prompts and right answers consist of, ascending."""
    return sorted({int(t) for q in questions for t in (*q.ids.tolist(), *q.answer)})


def teacher_forced(questions: Sequence[Question]) -> list[tuple[int, ...]]:
    """What follows each prompt in training: its answer but for the last token."""
    return [question.answer[:-1] for question in questions]


def next_token_labels(questions: Sequence[Question], ignore: int) -> Tensor:
    """(N,) labels of a teacher-forced batch laid end to end; only answers are known."""
    labels = []
    for question in questions:
        label = torch.full((len(question.ids) + len(question.answer) - 1,), ignore)
        label[-len(question.answer) :] = torch.tensor(question.answer)
        labels.append(label)
    return torch.cat(labels)


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
