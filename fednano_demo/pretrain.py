"""Train the demo model from random weights and write it with its processor and model card.

python -m fednano_demo.pretrain [--out runs/demo-model] [--seed 0] [--steps 2000] [--threads N]

The shipped weights came from the defaults. Retraining into `fednano_demo/model` replaces them, and
drops the ablation from the card until `python -m fednano_demo.ablation --card` is run again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from fednano_demo.card import TrainingFacts, record_training
from fednano_demo.encode import VOCABULARY
from fednano_demo.evaluate import accuracy_by_skill, mean_accuracy
from fednano_demo.network import build_model
from fednano_demo.processor import build_processor
from fednano_demo.questions import draw_questions
from fednano_demo.skills import IMAGE_SKILLS, TEXT_SKILLS
from fednano_demo.training import Recipe, Trainer


def pretrain(out: Path, seed: int = 0, recipe: Recipe | None = None) -> dict[str, float]:
    """Train, measure on fresh questions and write model, processor and card; returns accuracies."""
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    model = build_model()
    start = time.perf_counter()
    trainer = Trainer(model, recipe, seed)
    for step in tqdm(range(recipe.vision_steps), desc="vision"):
        trainer.vision_step(step)
    bar = tqdm(range(recipe.steps), desc="answers")
    average = 1.5
    for step in bar:
        average += 0.02 * (trainer.joint_step(step) - average)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{average:.3f}")
    seconds = time.perf_counter() - start
    fresh = np.random.default_rng(seed + 1_000_000)
    skills = (*IMAGE_SKILLS, *TEXT_SKILLS)
    accuracy = accuracy_by_skill(
        model, draw_questions(skills, recipe.test_per_skill * len(skills), fresh)
    )
    logging.disable_progress_bar()
    model.save_pretrained(out)
    build_processor().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # so that other users can read an installed copy
    facts = TrainingFacts(
        steps=recipe.steps,
        vision_steps=recipe.vision_steps,
        seed=seed,
        seconds=seconds,
        threads=torch.get_num_threads(),
        parameters=sum(p.numel() for p in model.parameters()),
        words=len(VOCABULARY),
        questions_per_skill=recipe.test_per_skill,
        accuracy=accuracy,
        image_accuracy=mean_accuracy(accuracy, IMAGE_SKILLS),
    )
    record_training(out, facts)
    return accuracy


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model from random weights.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo-model"), help="folder to write; %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    accuracy = pretrain(options.out, options.seed, Recipe(steps=options.steps))
    print("\n".join(f"{skill:<12} {share:.3f}" for skill, share in accuracy.items()))
    print(f"image skills {mean_accuracy(accuracy, IMAGE_SKILLS):.3f}  ->  {options.out}")


if __name__ == "__main__":
    main()
