"""The recipe of pretraining: its two phases, losses and optimizers.

First the vision tower and the connector learn to describe each cell of a picture by words. Then
the whole model learns to answer. Both use dense labels that only a generator can give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from fednano_demo.encode import Encoded, collate, encode, encode_open, pixel_values
from fednano_demo.losses import alignment_loss, picture_labels
from fednano_demo.questions import Question, draw_questions
from fednano_demo.skills import IMAGE_SKILLS, TEXT_SKILLS, WARM_UP_SKILLS


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of pretraining."""

    steps: int = 2000
    vision_steps: int = 150
    batch_size: int = 64
    vision_batch_size: int = 128
    warm_up: int = 30  # steps
    decay: float = 0.5  # last share of the steps, over which the learning rate falls to 3 %
    muon_rate: float = 0.01
    adam_rate: float = 1.5e-3
    open_share: float = 0.2  # of questions that are asked without options
    text_share: float = 0.25  # of questions without a picture
    verdict_weight: float = 1.0
    picture_weight: float = 0.5  # of the alignment and norm of features
    norm_weight: float = 0.04  # against the alignment; keeps features as small as token embeddings
    picture_pool: int = 26_000  # questions drawn once and then sampled from
    text_pool: int = 6_000
    test_per_skill: int = 200


class Pool:
    """Questions drawn and encoded once, to sample batches from."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.closed = [encode(question) for question in questions]
        self.open = [encode_open(question) for question in questions]

    def draw(
        self, count: int, open_share: float, rng: np.random.Generator
    ) -> tuple[list[Question], list[Encoded]]:
        """`count` questions, each asked without its options with probability `open_share`."""
        picks = [int(index) for index in rng.integers(0, len(self.questions), count)]
        without = rng.random(count) < open_share
        encoded = [
            (self.open if is_open else self.closed)[index]
            for index, is_open in zip(picks, without, strict=True)
        ]
        return [self.questions[index] for index in picks], encoded


class Trainer:
    """One model, its two optimizers and the losses of both phases."""

    def __init__(self, model: LlavaForConditionalGeneration, recipe: Recipe, seed: int) -> None:
        self.model, self.recipe = model, recipe
        self.rng = np.random.default_rng(seed)
        self.pictures = Pool(draw_questions(IMAGE_SKILLS, recipe.picture_pool, self.rng))
        texts = (*TEXT_SKILLS, *WARM_UP_SKILLS)
        self.texts = Pool(draw_questions(texts, recipe.text_pool, self.rng))
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
        known = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in known]
        muon = torch.optim.Muon(
            matrices, lr=recipe.muon_rate, weight_decay=0.05, adjust_lr_fn="original"
        )
        adam = torch.optim.AdamW(
            others, lr=recipe.adam_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True
        )
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (muon, adam)
        self.rates = (recipe.muon_rate, recipe.adam_rate)

    def _descend(self, loss: Tensor, share: float) -> None:
        """One step of both optimizers at `share` of their full learning rates."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _picture_loss(self, features: Tensor, questions: Sequence[Question]) -> Tensor:
        """Alignment of the (n, 9, d) features, and their squared norm.

        Without the norm, features grow to thirty times a token embedding's length around a large
        common mean, and a low-rank adapter on them is too badly conditioned to learn.
        """
        embeddings = self.model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        alignment = alignment_loss(features, picture_labels(questions), embeddings.weight)
        norm = features.float().square().sum(-1).mean()
        return alignment + self.recipe.norm_weight * norm

    def vision_step(self, step: int) -> float:
        """Teach vision tower and connector alone; returns the loss."""
        questions, _ = self.pictures.draw(self.recipe.vision_batch_size, 0.0, self.rng)
        pixels = pixel_values([q.picture for q in questions if q.picture is not None])
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        loss = self._picture_loss(torch.stack(list(features)), questions)
        self._descend(loss, min(1.0, (step + 1) / 20))
        return float(loss.detach())

    def joint_step(self, step: int) -> float:
        """Teach the whole model to answer; returns the answers' loss."""
        recipe, model = self.recipe, self.model
        texts = int(recipe.batch_size * recipe.text_share)
        questions, encoded = self.pictures.draw(
            recipe.batch_size - texts, recipe.open_share, self.rng
        )
        more = self.texts.draw(texts, recipe.open_share, self.rng)
        questions, encoded = questions + more[0], encoded + more[1]
        batch = collate(questions, encoded)
        rows, positions, verdicts = batch.verdicts
        with torch.autocast("cpu", torch.bfloat16):
            output = model.model(input_ids=batch.ids, pixel_values=batch.pixels, use_cache=False)
            hidden = output.last_hidden_state
            answers = model.lm_head(hidden[torch.arange(len(questions)), batch.last])
            judged = model.lm_head(hidden[rows, positions])
        loss = cross_entropy(answers.float(), batch.targets)
        features = output.image_hidden_states.view(-1, 9, hidden.shape[-1])
        total = (
            loss
            + recipe.verdict_weight * cross_entropy(judged.float(), verdicts)
            + recipe.picture_weight * self._picture_loss(features, questions)
        )
        self._descend(total, self._share(step))
        return float(loss.detach())

    def _share(self, step: int) -> float:
        """The learning rate's share: a linear warm-up, a plateau and a linear decay."""
        left = (1 - step / self.recipe.steps) / self.recipe.decay
        return min(1.0, (step + 1) / self.recipe.warm_up) * min(1.0, left + 0.03)
