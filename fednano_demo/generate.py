"""Write the demo's questions to disk in the layouts of IconQA and ScienceQA.

    python -m fednano_demo.generate OUT [--train 2000] [--val 300] [--test 1000] [--seed 0] [--base]

Writes OUT/iconqa/iconqa_data (image skills) and OUT/scienceqa (image and text-only skills). The
same arguments give the same bytes. `--base` draws from the pretraining distribution instead of
the shifted one that adapters are meant to learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from fednano_demo.layouts import Splits, write_iconqa, write_scienceqa
from fednano_demo.questions import BASE, DOWNSTREAM, Question, Shift, draw_question
from fednano_demo.skills import IMAGE_SKILLS, TEXT_SKILLS

TRAIN, VAL, TEST = 2000, 300, 1000
"""Questions a split and layout."""


def _identity(question: Question) -> tuple[object, ...]:
    picture = b"" if question.picture is None else question.picture.tobytes()
    return question.text, question.choices, picture


def draw_splits(
    skills: tuple[str, ...], sizes: dict[str, int], rng: np.random.Generator, shift: Shift
) -> Splits:
    """Draw splits of the given sizes; no question occurs twice, in one split or in two."""
    seen: set[tuple[object, ...]] = set()
    splits: Splits = {}
    for split, size in sizes.items():
        questions: list[Question] = []
        while len(questions) < size:
            question = draw_question(skills[len(questions) % len(skills)], rng, shift)
            if (key := _identity(question)) not in seen:
                seen.add(key)
                questions.append(question)
        splits[split] = questions
    return splits


def write_dataset(
    out: Path,
    train: int = TRAIN,
    val: int = VAL,
    test: int = TEST,
    seed: int = 0,
    shift: Shift = DOWNSTREAM,
) -> None:
    """Write both layouts below `out`, each with its own draw of questions.

    Args:
        train, val, test: questions a split, in each of the two layouts.
        seed: of every draw.
        shift: the distribution to draw from.
    """
    sizes = {"train": train, "val": val, "test": test}
    icon_rng, science_rng = np.random.default_rng(seed).spawn(2)
    write_iconqa(out / "iconqa", draw_splits(IMAGE_SKILLS, sizes, icon_rng, shift))
    skills = (*IMAGE_SKILLS, *TEXT_SKILLS)
    write_scienceqa(out / "scienceqa", draw_splits(skills, sizes, science_rng, shift))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the demo's questions to disk.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--train", type=int, default=TRAIN)
    parser.add_argument("--val", type=int, default=VAL)
    parser.add_argument("--test", type=int, default=TEST)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", action="store_true", help="draw what the model was trained on")
    options = parser.parse_args()
    shift = BASE if options.base else DOWNSTREAM
    write_dataset(options.out, options.train, options.val, options.test, options.seed, shift=shift)
    print(f"{options.out}/iconqa and {options.out}/scienceqa written")


if __name__ == "__main__":
    main()
