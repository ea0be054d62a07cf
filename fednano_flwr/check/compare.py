"""A checkpoint's two halves against the whole model, on a few questions."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from fednano_flwr.adapters.site import build_adapters, randomize
from fednano_flwr.check.sides import Cost, Outcome, halves, whole
from fednano_flwr.config import ALL_SITES, Adapter, ConfigError
from fednano_flwr.data.errors import SampleError
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sounds import noise
from fednano_flwr.edge.encoder import KINDS, QuestionEncoder, load_encoder
from fednano_flwr.edge.questions import Question
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.source import model_sites

LIMIT, GRADIENT_LIMIT = 1e-4, 1e-3
"""Of what differs, relative to the largest value: float32 rounds less, a wrong cut far more."""
RANK = 4
WRITTEN, READ = "logits of answers, written", "logits of answers, read"
TEXTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Is it true?": (),
    "Is there something to see here, or is there nothing?": ((320, 240),),
    "Are these two the same?": ((200, 300), (336, 336)),
}
"""Questions, and widths and heights of their pictures; a sound has 20 samples a row."""


class HalvesError(RuntimeError):
    """The whole model or its halves cannot compute what is to be compared."""


@dataclass(frozen=True)
class Difference:
    """The largest difference in one thing that both compute, relative to its largest value."""

    name: str
    found: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.found <= self.limit  # not where it is NaN


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        file_tokens: of each picture, and of each sound, of a question.
        left_out: questions that this model does not take, and why.
    """

    differences: tuple[Difference, ...]
    costs: tuple[Cost, ...]
    file_tokens: dict[str, tuple[int, ...]]
    left_out: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(difference.passed for difference in self.differences)


def compare(checkpoint: ModelCheckpoint) -> Comparison:
    """Load the whole model, then its two halves, and compare what they compute in float32.

    Raises:
        ConfigError: the checkpoint cannot be used.
        HalvesError: the model or its halves do not run.
    """
    checkpoint.check(checkpoint.tensors("edge"))
    checkpoint.check(checkpoint.tensors("llm"))
    encoder = load_encoder(checkpoint)
    encoder.ends = set()  # answers are as long as they may be
    questions, left_out = _questions(encoder)
    adapters = _adapters(checkpoint)
    with _running("the whole model"):
        expected, alone = whole(checkpoint, encoder, questions, adapters)
    gc.collect()  # the two need not be in memory together
    with _running("the two halves"):
        found, costs = halves(checkpoint, encoder, questions, adapters)
        differences = _differences(found, expected)
    tokens = {
        KINDS[site]: tuple(
            int(torch.isin(question.ids, torch.tensor(places)).sum()) // len(files)
            for question in questions
            if (files := question.sample.media.get(site))
        )
        for site, places in encoder.placeholders.items()
    }
    return Comparison(
        differences,
        (alone, *costs),
        tokens,
        left_out,
    )


@contextmanager
def _running(what: str) -> Iterator[None]:
    """
    Raises:
        HalvesError: the block does not run; what is wrong with a cut may show in any error.
    """
    try:
        yield
    except (ConfigError, MemoryError, OSError):
        raise
    except Exception as error:
        says = " ".join(str(error).split())
        raise HalvesError(f"{what} cannot run: {type(error).__name__}: {says}") from error


def _differences(found: Outcome, expected: Outcome) -> tuple[Difference, ...]:
    wrong = sum(
        one != other
        for own, theirs in zip(found.answers, expected.answers, strict=True)
        for one, other in zip(own, theirs, strict=True)
    )
    pairs = [(found.gradients[name], theirs) for name, theirs in expected.gradients.items()]
    return (
        Difference("logits", _difference(found.scores, expected.scores), LIMIT),
        Difference("loss", abs(found.loss - expected.loss) / abs(expected.loss), LIMIT),
        Difference("adapter gradients", max(_difference(*pair) for pair in pairs), GRADIENT_LIMIT),
        Difference(WRITTEN, _difference(found.written, expected.written), LIMIT),
        Difference(READ, _difference(found.read, expected.read), LIMIT),
        Difference("wrong tokens in answers", wrong, 0),
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest value expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def _adapters(checkpoint: ModelCheckpoint) -> PeftModel:
    """NanoAdapters at all sites that change what passes them."""
    width, sites = checkpoint.config.get_text_config().hidden_size, model_sites(checkpoint.config)
    adapter = Adapter(RANK, 2.0 * RANK, 0.0, ALL_SITES)
    adapters = build_adapters(width, adapter, seed=0, sites=sites)
    return randomize(adapters, width**-0.5, seed=1)


def _questions(encoder: QuestionEncoder) -> tuple[list[Question], tuple[str, ...]]:
    """Questions of unlike lengths with no picture, one and several, as far as the model takes them.

    Of a model that hears, with sounds, too, or with sounds alone.

    Raises:
        HalvesError: it takes none without a picture, or none with one.
    """
    taken, left_out = [], []
    for text, pictures in TEXTS.items():
        sample = Sample(text, text, "", "", ("yes", "no"), answer=0)
        if "image" in encoder.placeholders:
            sample = replace(sample, images=tuple(_picture(*size) for size in pictures))
        if "audio" in encoder.placeholders:
            sample = replace(sample, sounds=tuple(noise(20 * h, seed=w) for w, h in pictures))
        files = f"{len(pictures)} {' and '.join(KINDS[s] for s in encoder.placeholders)}"
        try:
            taken.append(encoder.encode(sample))
        except SampleError as error:
            if len(pictures) < 2:
                raise HalvesError(f"a question with {files}s: {error}") from error
            left_out.append(f"a question with {files}s: {error}")
    return taken, tuple(left_out)


def _picture(width: int, height: int) -> Picture:
    """Noise, of which every part of an encoder makes something else."""
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(data=file.getvalue())
