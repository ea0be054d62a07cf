"""What each of the two adapters is worth on the demo's downstream shift, trained centrally.

    python -m fednano_demo.ablation [--out ablation.json] [--seeds 0,1,2] [--epochs 5] [--card]

Compares the frozen model with an adapter on the connector's features only, on the token
embeddings only, and on both. Frozen features are computed once; no federation is involved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from fednano_demo import MODEL_DIR
from fednano_demo.adapting import Adapter, FrozenQuestions, Recipe, adapt, score
from fednano_demo.card import AblationFacts, mean_and_spread, record_ablation
from fednano_demo.generate import TEST, TRAIN, draw_splits
from fednano_demo.questions import DOWNSTREAM, DOWNSTREAM_IN_WORDS, Shift
from fednano_demo.skills import IMAGE_SKILLS, TEXT_SKILLS

SETTINGS = {
    "zero-shot": (False, False),
    "image only": (True, False),
    "text only": (False, True),
    "both": (True, True),
}
"""Which of the image and the text adapter is trained."""


def run(
    model: LlavaForConditionalGeneration,
    train: FrozenQuestions,
    test: FrozenQuestions,
    setting: str,
    seed: int,
    recipe: Recipe,
) -> float:
    """Train the setting's adapters from scratch and return their accuracy on `test`."""
    generator = torch.Generator().manual_seed(seed)
    with_image, with_text = SETTINGS[setting]
    image_adapter = Adapter(recipe, generator) if with_image else nn.Identity()
    text_adapter = Adapter(recipe, generator) if with_text else nn.Identity()
    if with_image or with_text:
        adapt(model, image_adapter, text_adapter, train, recipe, generator)
    return score(model, image_adapter, text_adapter, test)


def ablate(
    model_dir: Path,
    seeds: Sequence[int],
    recipe: Recipe,
    shift: Shift = DOWNSTREAM,
    train_size: int = TRAIN,
    test_size: int = TEST,
) -> dict[str, list[float]]:
    """Every setting's test accuracy for every seed; a seed also draws its own questions."""
    model = LlavaForConditionalGeneration.from_pretrained(
        model_dir, attn_implementation="eager", use_safetensors=True, trust_remote_code=False
    )
    model.eval().requires_grad_(False)
    accuracy: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    sizes = {"train": train_size, "test": test_size}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        splits = draw_splits((*IMAGE_SKILLS, *TEXT_SKILLS), sizes, rng, shift)
        train, test = (FrozenQuestions(model, splits[split]) for split in sizes)
        for setting in SETTINGS:
            accuracy[setting].append(run(model, train, test, setting, seed, recipe))
            print(f"seed {seed}  {setting:<10}  {accuracy[setting][-1]:.3f}", flush=True)
    return accuracy


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare the two adapters on the demo's shift.")
    parser.add_argument("--out", type=Path, default=Path("ablation.json"), help="file to write")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder of the weights")
    parser.add_argument("--card", action="store_true", help="add the result to the model's card")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: all")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    recipe = Recipe(epochs=options.epochs, learning_rate=options.learning_rate)
    start = time.perf_counter()
    accuracy = ablate(options.model, seeds, recipe)
    facts = AblationFacts(
        recipe=asdict(recipe),
        description=DOWNSTREAM_IN_WORDS,
        seeds=seeds,
        train_size=TRAIN,
        test_size=TEST,
        seconds=time.perf_counter() - start,
        threads=torch.get_num_threads(),
        accuracy=accuracy,
    )
    for setting, values in accuracy.items():
        mean, spread = mean_and_spread(values)
        print(f"{setting:<10}  {mean:.3f} ± {spread:.3f}")
    facts.save(options.out)
    if options.card:
        record_ablation(options.model, facts)


if __name__ == "__main__":
    main()
