"""easy-VQA under three shifts that clients have in different shares.

renamed     other names for the shapes in questions and answers
washed out  the same, and pictures of which three quarters are white
german      questions and answers in German
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fednano_demo.real.easy import KINDS, Question, read_pictures, read_questions, renamed
from fednano_demo.real.german import german

WHITE = 0.75
"""How much of a washed-out picture is white."""
RENAMED, WASHED_OUT, GERMAN = SHIFTS = ("renamed", "washed out", "german")


class Sizes(NamedTuple):
    """Questions a split."""

    train: int = 200
    val: int = 48
    test: int = 120


USUAL = Sizes()


def write_mixture(folder: Path, seed: int, sizes: Sizes = USUAL) -> None:
    """Write questions as <split>.jsonl, a table, with their pictures; the seed draws them.

    As many ask for the shape, for the colour, and whether something is there or is not there. Each
    has one shift, which is its group. Test questions are of easy-VQA's test pictures, those of
    train and val of different training pictures.
    """
    rng = random.Random(seed)
    train = read_questions("train")
    pictures = sorted({question.picture for question in train})
    later = set(rng.sample(pictures, len(pictures) // 5))
    pools = {
        "train": [question for question in train if question.picture not in later],
        "val": [question for question in train if question.picture in later],
        "test": read_questions("test"),
    }
    for split, pool in pools.items():
        files = read_pictures("test" if split == "test" else "train")
        (folder / split).mkdir()
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as out:
            for number, question in enumerate(_drawn(pool, getattr(sizes, split), rng)):
                row = _row(folder, f"{split}/{number}.png", files, question, rng.choice(SHIFTS))
                print(json.dumps(row, ensure_ascii=False), file=out)


def _drawn(pool: list[Question], count: int, rng: random.Random) -> list[Question]:
    """So many different questions, of each kind as many."""
    drawn = [
        question
        for kind in KINDS
        for question in rng.sample([one for one in pool if one.kind == kind], count // len(KINDS))
    ]
    rng.shuffle(drawn)
    return drawn


def _row(
    folder: Path, name: str, files: Mapping[int, Path], question: Question, shift: str
) -> dict[str, str]:
    """One question under a shift; its picture is written."""
    if shift == WASHED_OUT:
        picture = Image.open(files[question.picture]).convert("RGB")
        Image.blend(picture, Image.new("RGB", picture.size, "white"), WHITE).save(folder / name)
    else:
        shutil.copyfile(files[question.picture], folder / name)
    write = german if shift == GERMAN else renamed
    return {
        "image": name,
        "question": write(question.text),
        "answer": write(question.answer),
        "group": shift,
        "subject": question.kind,
    }
