"""The model card: what the weights are, measured, and why their task is easy."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TRAINING, _ABLATION = "training.json", "ablation.json"

_INTRODUCTION = """\
---
library_name: transformers
license: apache-2.0
tags: [llava, demo]
---
# FedNano's demo model

A LLaVA (`LlavaForConditionalGeneration`) of {parameters:,} parameters that answers multiple-choice
questions about icons in pictures of 48×48 pixels. It exists so that FedNano can be tried and tested
offline, on a CPU, in minutes. It is good for nothing else: it knows {words} words.

- Vision encoder: CLIP, 2 layers of width 96, one patch of 16×16 pixels for each of 9 cells.
- Language model: Llama, 4 layers of width 128. Tokenizer: one token a word, unknown words `<unk>`.
- Prompt: that of `fednano_flwr.data.prompts`, through the processor's chat template.

## Training
`python -m fednano_demo.pretrain --seed {seed} --steps {steps} --threads {threads}`: {seconds:.0f} s
on a machine of {cores} CPU cores, bf16 autocast, weights kept in fp32. {vision_steps} steps teach
vision encoder and connector to describe each cell by words; {steps} more teach the whole model to
answer, with right-or-wrong targets at every option and the cells' descriptions as further losses.

## Accuracy on fresh questions of the pretraining distribution
{questions_per_skill} questions a skill; two to four options, so chance is about 0.38.

{table}

## What makes this easy
- Every icon sits on the vision encoder's patch grid: one patch is one cell, so nothing has to be
  found or segmented.
- Pretraining uses dense labels that only a generator has: what is in each cell, and which option
  is right.
- The text-only skills ask a few dozen facts that pretraining shows again and again: they are
  memory, not understanding.
- Test questions are fresh draws from the distribution that the model was trained on.
"""

_SHIFT = """
## The downstream shift
`python -m fednano_demo.generate` draws questions that differ from pretraining's in two ways:
{description}
What adapters make of it (`python -m fednano_demo.ablation`: trained centrally on {train_size}
questions, {epochs} epochs, batch {batch_size}, AdamW {learning_rate}, rank {rank}, alpha {alpha:g};
{test_size} test questions; {threads} of {cores} CPU cores, {seconds:.0f} s in all):

| trained | accuracy, mean of {seeds} seeds | standard deviation | each seed |
|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class TrainingFacts:
    """What pretraining was and how well it went."""

    steps: int
    vision_steps: int
    seed: int
    seconds: float
    threads: int
    parameters: int
    words: int
    questions_per_skill: int
    accuracy: dict[str, float]
    image_accuracy: float
    cores: int | None = os.cpu_count()


@dataclass(frozen=True)
class AblationFacts:
    """What the adapters reached on the downstream shift, for every setting and seed."""

    recipe: dict[str, Any]
    description: str
    seeds: list[int]
    train_size: int
    test_size: int
    seconds: float
    threads: int
    accuracy: dict[str, list[float]]
    cores: int | None = os.cpu_count()

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _training_text(facts: dict[str, Any]) -> str:
    rows = [f"| {skill} | {share:.3f} |" for skill, share in facts["accuracy"].items()]
    mean = f"| **mean of the image skills** | **{facts['image_accuracy']:.3f}** |"
    return _INTRODUCTION.format(
        table="\n".join(["| skill | accuracy |", "|---|---|", *rows, mean]), **facts
    )


def _shift_text(facts: dict[str, Any]) -> str:
    rows = []
    for setting, values in facts["accuracy"].items():
        mean, spread = mean_and_spread(values)
        each = ", ".join(f"{value:.3f}" for value in values)
        rows.append(f"| {setting} | {mean:.3f} | {spread:.3f} | {each} |")
    others = {key: facts[key] for key in facts if key not in ("accuracy", "recipe", "seeds")}
    return _SHIFT.format(
        rows="\n".join(rows), seeds=len(facts["seeds"]), **others, **facts["recipe"]
    )


def _write_card(folder: Path) -> None:
    text = _training_text(json.loads((folder / _TRAINING).read_text(encoding="utf-8")))
    if (folder / _ABLATION).exists():
        text += _shift_text(json.loads((folder / _ABLATION).read_text(encoding="utf-8")))
    (folder / "README.md").write_text(text, encoding="utf-8")


def record_training(folder: Path, facts: TrainingFacts) -> None:
    """Start the card of new weights; what adapters reached with older weights is dropped."""
    text = json.dumps(asdict(facts), indent=1) + "\n"
    (folder / _TRAINING).write_text(text, encoding="utf-8")
    (folder / _ABLATION).unlink(missing_ok=True)
    _write_card(folder)


def record_ablation(folder: Path, facts: AblationFacts) -> None:
    """Add to the card what adapters reach with the folder's weights."""
    facts.save(folder / _ABLATION)
    _write_card(folder)
