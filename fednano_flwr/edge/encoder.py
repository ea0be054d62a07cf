"""Samples to questions, with a model's processor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednano_flwr.config import ConfigError
from fednano_flwr.data.errors import DataError, SampleError
from fednano_flwr.data.images import open_image
from fednano_flwr.data.media import content_digest, first_defect
from fednano_flwr.data.prompts import LETTERS, by_letter
from fednano_flwr.data.sample import Picture, Sample, Sound
from fednano_flwr.data.sounds import missing_libraries, open_sound
from fednano_flwr.edge.fit import UNLIMITED, Fit
from fednano_flwr.edge.marks import without_answers
from fednano_flwr.edge.processor_check import check_processor
from fednano_flwr.edge.prompting import LEARNED, Prompting
from fednano_flwr.edge.questions import Question
from fednano_flwr.edge.stored_questions import StoredQuestions
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import placeholders
from fednano_flwr.models.processor import load_processor

TEXT_TENSORS = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "labels",
    LEARNED,
}
KINDS = {"image": Picture.noun, "audio": Sound.noun}
GEOMETRY = {"image_grid_thw"}
NOT_FINITE = "what the processor makes of its pictures or sounds is not finite"
TOO_SHORT = "a sound is too short for the model to hear"


class QuestionEncoder:
    """Turns samples into questions with the processor of a model, or of an edge bundle.

    Attributes:
        processor: of the model.
        prompting: how its prompts are written.
        placeholders: tokens that stand for features, by site.
        end: token that ends a right answer.
        ends: tokens that end a generated one.

    Raises:
        ConfigError: there is no processor, or it lacks what prompts need.
    """

    def __init__(self, checkpoint: ModelCheckpoint) -> None:
        self.processor = load_processor(checkpoint.folder, checkpoint.family)
        tokenizer, config = self.processor.tokenizer, checkpoint.config
        self.end: int = tokenizer.eos_token_id
        self.ends = {self.end, *_ends(checkpoint.folder)}
        self._vocabulary: int = config.get_text_config().vocab_size
        self._family, self.placeholders = checkpoint.family, placeholders(checkpoint)
        if "audio" in self.placeholders and (missing := missing_libraries()):
            raise ConfigError(f"model {checkpoint.name!r} hears: {missing}")
        placed = list(chain.from_iterable(self.placeholders.values()))
        self.prompting = Prompting(checkpoint.family, self.processor, placed, self.ends)
        self._letters: dict[str, tuple[int, ...]] = {}

    def encode(self, sample: Sample) -> Question:
        """Tokenize a sample; its pictures are only measured here, not encoded.

        Raises:
            SampleError: the sample cannot be used with this model.
        """
        question, prompt = self._asked(sample)
        with _one_sample(sample):
            answer = self._answer(sample, question, prompt)
        self._check_known(answer)
        return replace(question, answer=answer)

    def unanswered(self, sample: Sample) -> Question:
        """As `encode`, but for the answer, which need not be known: its tokens are ().

        Raises:
            SampleError: the sample cannot be used with this model.
        """
        return self._asked(sample)[0]

    def _asked(self, sample: Sample) -> tuple[Question, str]:
        """A question without its answer, and its prompt."""
        if len(sample.choice_images) > len(LETTERS):
            raise SampleError(
                f"{sample.num_options} options are pictures, and there are {len(LETTERS)} letters"
            )
        for site in sample.media.keys() - self.placeholders.keys():
            raise SampleError(f"the model takes no {KINDS[site]}s")
        options: tuple[int, ...] = ()
        words: tuple[tuple[int, ...], ...] = ()
        with _one_sample(sample):
            prompt = self.prompting.write(sample)
            self._check_places(sample, prompt)
            tensors = self.tensors(sample, prompt)
            if not all(one.isfinite().all() for one in tensors.values()):
                raise SampleError(NOT_FINITE)
            if by_letter(sample):
                options = self._letter_ids(prompt)[: sample.num_options]
            else:
                words = tuple(self._words(prompt, choice) for choice in sample.choices)
        ids = tensors["input_ids"][0]
        tokens = ids.tolist()
        self._check_tokens(sample, tokens)
        placed = chain.from_iterable(self.placeholders.values())
        self._check_known({*tokens, *chain.from_iterable(words)}.difference(placed))
        geometry = {key: tensors[key] for key in GEOMETRY & tensors.keys()}
        learned = torch.zeros(len(tokens), dtype=torch.bool)
        if LEARNED in tensors:
            learned = tensors[LEARNED][0]
        return Question(sample, ids, (), options, geometry, learned, words), prompt

    def _answer(self, sample: Sample, question: Question, prompt: str) -> tuple[int, ...]:
        if sample.answer is None:
            return self._words(prompt, sample.free_answer)
        if question.words:
            right = question.words[sample.answer]
            alike = {
                c.strip()
                for c, word in zip(sample.choices, question.words, strict=True)
                if word == right
            }
            if len(alike) > 1:
                raise SampleError("another of its options has the same tokens as the right one")
            return right
        return (question.options[sample.answer],)

    def vision_inputs(self, sample: Sample) -> dict[str, Tensor]:
        """What the encoders take of a sample that has pictures or sounds."""
        tensors = self.tensors(sample, self.prompting.write(sample))
        return {key: value for key, value in tensors.items() if key not in TEXT_TENSORS}

    def media_key(self, sample: Sample, site: str) -> str:
        """Digest of all that a site's features depend on in a sample; nothing is decoded."""
        digest = hashlib.sha256(b"" if site == "image" else site.encode())
        for file in sample.media[site]:
            digest.update(content_digest(file))
        digest.update(str(self.prompting.encoder_ids(sample)).encode())
        return digest.hexdigest()

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.prompting.tokens(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer's tokens."""
        return self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _check_places(self, sample: Sample, prompt: str) -> None:
        """
        Raises:
            SampleError: the prompt has another number of places than the sample has files.
        """
        for site, kind in KINDS.items():
            places, files = self.prompting.places(prompt, site), len(sample.media.get(site, ()))
            if places != files:
                raise SampleError(f"its prompt has {places} places for its {files} {kind}s")

    def _check_tokens(self, sample: Sample, tokens: list[int]) -> None:
        """
        Raises:
            SampleError: the tokens have no place for a picture or a sound, or one for none.
        """
        for site, (token, *_) in self.placeholders.items():
            count, files = tokens.count(token), len(sample.media.get(site, ()))
            if site == "audio" and files and not count:
                raise SampleError(TOO_SHORT)
            if count < files or (count and not files):
                raise SampleError(f"its tokens hold {count} places for its {files} {KINDS[site]}s")

    def _check_known(self, tokens: Collection[int]) -> None:
        """
        Raises:
            SampleError: the tokenizer has a token that the model does not have.
        """
        if (largest := max(tokens, default=0)) >= self._vocabulary:
            written = self.processor.tokenizer.convert_ids_to_tokens(largest)
            raise SampleError(
                f"its token {largest} ({written}) is not among the model's {self._vocabulary}"
            )

    def tensors(self, sample: Sample, prompt: str) -> dict[str, Tensor]:
        """What the model's processor makes of a sample's prompt and files."""
        media: list[Any] = [*map(open_image, sample.pictures), *map(self._heard, sample.sounds)]
        return self.prompting.tensors(prompt, media)

    def _heard(self, sound: Sound) -> np.ndarray:
        """(n,) samples, at the processor's rate.

        Raises:
            SampleError: it is longer than the model hears, or too short to be heard.
        """
        rate: int = self.processor.feature_extractor.sampling_rate
        samples, longest = open_sound(sound, rate), self._family.longest_sound(self.processor)
        if len(samples) > longest * rate:
            raise SampleError(
                f"a sound is longer than the {longest:g} s that the model hears",
                f"{sound} is {len(samples) / rate:.6g} s long; the model hears {longest:g} s",
            )
        if not len(samples):
            raise SampleError(TOO_SHORT, f"{sound} has no sample at {rate} a second")
        return samples

    def _letter_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of the letters, as they follow this prompt's last line."""
        ending = without_answers(prompt)[-16:]
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

    def _words(self, prompt: str, text: str) -> tuple[int, ...]:
        """Tokens of an answer in words, and its end."""
        return (*self._continuation(prompt, self.prompting.typed.broken(text)), self.end)

    def _continuation(self, prompt: str, text: str) -> tuple[int, ...]:
        """Tokens of `text` as they follow this prompt's last line."""
        ending = without_answers(prompt)[-16:]
        space = "" if ending[-1].isspace() or not self._family.spaced else " "
        before = self.prompting.tokens(ending)
        after = self.prompting.tokens(ending + space + text)
        if after == before:
            raise SampleError("its answer has no token", f"the answer {text!r} has no token")
        if after[: len(before)] != before:
            raise SampleError(
                "its answer changes how the prompt is tokenized",
                f"{text!r} after {ending!r} changes how that is tokenized: this model's answers "
                "cannot be told apart from its prompts",
            )
        return tuple(after[len(before) :])


@contextmanager
def _one_sample(sample: Sample) -> Iterator[None]:
    """Whatever is wrong with one sample is its own error, with a reason."""
    try:
        yield
    except (SampleError, MemoryError):  # a machine without memory says nothing of the sample
        raise
    except (FileNotFoundError, DataError) as error:
        raise SampleError(first_defect(sample) or str(error), str(error)) from error
    except Exception as error:  # processors and tokenizers raise nearly anything
        name = type(error).__name__
        raise SampleError(f"the model's processor refuses it: {name}: {error}") from error


def encode_all(
    encoder: QuestionEncoder, samples: Sequence[Sample], fit: Fit = UNLIMITED
) -> tuple[StoredQuestions, list[tuple[str, str]]]:
    """The samples that this model can take, tokenized; id and reason of each other one.

    Args:
        fit: how long they may be.
    """
    questions, left_out = StoredQuestions(samples), []
    for row, sample in enumerate(samples):
        try:
            questions.add(row, sample, fit.encode(encoder, sample))
        except SampleError as error:
            left_out.append((sample.uid, error.reason))
    return questions, left_out


def load_encoder(checkpoint: ModelCheckpoint) -> QuestionEncoder:
    """The encoder of a model, or of an edge bundle.

    Raises:
        ConfigError: processor, tokenizer and config are not there or do not fit together.
    """
    encoder = QuestionEncoder(checkpoint)
    check_processor(checkpoint, encoder)
    return encoder


def _ends(folder: Path) -> list[int]:
    """End tokens by the model's generation config, where it has one: chats may end otherwise.

    Raises:
        ConfigError: it cannot be read.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text("utf-8")).get("eos_token_id")
        ends = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(token) is int for token in ends):
            raise ValueError(f"eos_token_id is {found!r}, and not one or several whole numbers")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be used: {error}") from error
    return ends
