"""easy-VQA under shifts that the real model has not seen, as tables that `fednano run` reads.

text      pictures as they are; questions and answers in German
mixture   new names for the shapes; a third of the questions has washed-out pictures, too, and
          another third is in German instead
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fednano_demo.real.easy import KINDS, Question, read_pictures, read_questions, renamed

WHITE = 0.75
"""How much of a washed-out picture is white."""
COLOURS = {
    "black": "schwarz",
    "blue": "blau",
    "brown": "braun",
    "gray": "grau",
    "green": "grün",
    "red": "rot",
    "teal": "türkis",
    "yellow": "gelb",
}
SHAPES = {"circle": "Kreis", "rectangle": "Rechteck", "triangle": "Dreieck"}
WORDS = {**COLOURS, **SHAPES, "yes": "ja", "no": "nein"}
PATTERNS = {
    r"what is the (\w+) shape": "Was ist die {0}e Form?",
    r"what (?:color is|is the color of) the (\w+)": "Welche Farbe hat {the}?",
    r"what shape (?:is|does the image) .+": "Welche Form ist zu sehen?",
    r"is (?:there )?a (.+?)(?: in the image| present)?": "Ist {a} zu sehen?",
    r"is (?:there not a|no) (.+?)(?: in the image| present)?": "Ist {no} zu sehen?",
    r"does the image contain a (.+)": "Zeigt das Bild {acc}?",
    r"does the image not contain a (.+)": "Zeigt das Bild {noacc}?",
}
"""English questions without their mark, and the same in German."""


class Sizes(NamedTuple):
    """Questions a split."""

    train: int = 240
    val: int = 60
    test: int = 160


USUAL = Sizes()


class Shift(NamedTuple):
    """What is changed of a question and its picture."""

    pale: bool = False
    words: Callable[[str], str] = str


def german(text: str) -> str:
    """A question or an answer of easy-VQA in German.

    Raises:
        ValueError: it is none of easy-VQA's.
    """
    if text in WORDS:
        return WORDS[text]
    for pattern, written in PATTERNS.items():
        if found := re.fullmatch(pattern, text.rstrip("?")):
            thing = found[1] if found.groups() else ""
            return written.format(WORDS.get(thing, ""), **_forms(thing))
    raise ValueError(f"{text!r} is no question of easy-VQA")


def _forms(thing: str) -> dict[str, str]:
    """`red shape`, `shape` or `circle` with its German articles."""
    colour, _, shape = thing.rpartition(" ")
    if shape not in SHAPES:
        noun = f"{COLOURS[colour]}e Form" if colour else "Form"
        return {"the": f"die {noun}", **_articles("eine", "eine", noun)}
    noun = SHAPES[shape]
    if shape == "circle":
        return {"the": f"der {noun}", **_articles("ein", "einen", noun)}
    return {"the": f"das {noun}", **_articles("ein", "ein", noun)}


def _articles(nominative: str, accusative: str, noun: str) -> dict[str, str]:
    forms = {"a": nominative, "no": f"k{nominative}", "acc": accusative, "noacc": f"k{accusative}"}
    return {key: f"{article} {noun}" for key, article in forms.items()}


TASKS: Mapping[str, Mapping[str, Shift]] = {
    "text": {"german": Shift(words=german)},
    "mixture": {
        "washed out": Shift(pale=True, words=renamed),
        "renamed": Shift(words=renamed),
        "german": Shift(words=german),
    },
}
"""The shifts of each task, of which a question has one."""


def write_task(folder: Path, task: str, seed: int, sizes: Sizes = USUAL) -> None:
    """Write a task's questions as <split>.jsonl, with their pictures; the seed draws them.

    As many of them ask for the shape, for its colour, and whether something is there or not there.
    Test questions are of easy-VQA's test pictures, train and val of different training pictures.
    A row's group is its shift, or the kind of question where the task has one shift.
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
        (folder / split).mkdir(parents=True)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as out:
            for number, question in enumerate(_draw(pool, getattr(sizes, split), rng)):
                row = _row(folder, f"{split}/{number}.png", files, question, TASKS[task], rng)
                print(json.dumps(row, ensure_ascii=False), file=out)


def _draw(pool: list[Question], count: int, rng: random.Random) -> list[Question]:
    """So many different questions, of each kind as many."""
    of_kind = {kind: [q for q in pool if q.kind == kind] for kind in KINDS}
    shares = [count // len(KINDS) + (place < count % len(KINDS)) for place in range(len(KINDS))]
    parts = [rng.sample(of_kind[kind], share) for kind, share in zip(KINDS, shares, strict=True)]
    drawn = [question for part in parts for question in part]
    rng.shuffle(drawn)
    return drawn


def _row(
    folder: Path,
    name: str,
    files: Mapping[int, Path],
    question: Question,
    shifts: Mapping[str, Shift],
    rng: random.Random,
) -> dict[str, str]:
    """One question under one of the shifts; its picture is written, too."""
    called = rng.choice(list(shifts))
    shift = shifts[called]
    if shift.pale:
        picture = Image.open(files[question.picture]).convert("RGB")
        Image.blend(picture, Image.new("RGB", picture.size, "white"), WHITE).save(folder / name)
    else:
        shutil.copyfile(files[question.picture], folder / name)
    return {
        "image": name,
        "question": shift.words(question.text),
        "answer": shift.words(question.answer),
        "group": called if len(shifts) > 1 else question.kind,
        "subject": question.kind,
    }
