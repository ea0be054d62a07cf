"""easy-VQA in German: a shift of the text alone, with each picture told in English words.

A row's context is `a teal circle`, its question and its answer are German. Nothing is seen.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import NamedTuple

import easy_vqa

from fednano_demo.real.easy import kind_number

TRAIN, VAL, TEST = 200, 48, 120
"""Questions."""
KINDS = ("shape", "colour", "there", "not there")
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
    r"what is the (\w+) shape": "Was ist die {word}e Form?",
    r"what color is the (\w+)": "Welche Farbe hat {the}?",
    r"what is the color of the (\w+)": "Was ist die Farbe {of}?",
    r"what shape is present": "Welche Form ist vorhanden?",
    r"what shape is in the image": "Welche Form ist im Bild?",
    r"what shape does the image contain": "Welche Form enthält das Bild?",
    r"is there a (.+) in the image": "Gibt es {acc} im Bild?",
    r"is there a (.+)": "Gibt es {acc}?",
    r"is a (.+) present": "Ist {a} vorhanden?",
    r"does the image contain a (.+)": "Enthält das Bild {acc}?",
    r"is there not a (.+) in the image": "Gibt es {noacc} im Bild?",
    r"is there not a (.+)": "Gibt es {noacc}?",
    r"is no (.+) present": "Ist {no} vorhanden?",
    r"does the image not contain a (.+)": "Enthält das Bild {noacc}?",
}
"""English questions without their mark, and the same in German."""


class Question(NamedTuple):
    """One of easy-VQA's questions of a picture that is told in words."""

    told: str
    text: str
    answer: str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[kind_number(self.text, self.answer)]


def german(text: str) -> str:
    """A question or an answer of easy-VQA in German.

    Raises:
        ValueError: it is none of easy-VQA's.
    """
    if text in WORDS:
        return WORDS[text]
    for pattern, written in PATTERNS.items():
        if found := re.fullmatch(pattern, text.rstrip("?")):
            return written.format(**_forms(found[1] if found.groups() else "shape"))
    raise ValueError(f"{text!r} is no question of easy-VQA")


def _forms(thing: str) -> dict[str, str]:
    """`red shape`, `shape`, `circle` or `red` with German articles."""
    colour, _, noun = thing.rpartition(" ")
    name = SHAPES.get(noun) or (f"{COLOURS[colour]}e Form" if colour else "Form")
    the, of, a, accusative = {
        "circle": ("der Kreis", "des Kreises", "ein", "einen"),
        "rectangle": ("das Rechteck", "des Rechtecks", "ein", "ein"),
        "triangle": ("das Dreieck", "des Dreiecks", "ein", "ein"),
    }.get(noun, ("die Form", "der Form", "eine", "eine"))
    articles = {"a": a, "no": f"k{a}", "acc": accusative, "noacc": f"k{accusative}"}
    forms = {key: f"{article} {name}" for key, article in articles.items()}
    return {"word": WORDS.get(thing, ""), "the": the, "of": of, **forms}


def told_questions() -> list[Question]:
    """All different questions of pictures whose colour and shape other questions give away."""
    found: set[Question] = set()
    for questions in (easy_vqa.get_train_questions(), easy_vqa.get_test_questions()):
        rows = list(zip(*questions, strict=True))
        shapes = {picture: answer for _, answer, picture in rows if answer in SHAPES}
        colours = {picture: answer for _, answer, picture in rows if answer in COLOURS}
        for text, answer, picture in rows:
            if picture in shapes and picture in colours:
                told = f"a {colours[picture]} {shapes[picture]}"
                found.add(Question(told, text, answer))
    return sorted(found)


def write_german(folder: Path, seed: int) -> None:
    """Write questions as <split>.jsonl, a table; the seed draws them, no two of them the same.

    As many ask for the shape, for the colour, and whether something is there or is not there.
    """
    rng = random.Random(seed)
    by_kind: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for question in told_questions():
        by_kind[question.kind].append(question)
    for questions in by_kind.values():
        rng.shuffle(questions)
    for split, count in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        drawn = [(kind, by_kind[kind].pop()) for kind in KINDS for _ in range(count // len(KINDS))]
        rng.shuffle(drawn)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for kind, question in drawn:
                row = {
                    "question": german(question.text),
                    "context": question.told,
                    "answer": german(question.answer),
                    "group": kind,
                    "subject": kind,
                }
                print(json.dumps(row, ensure_ascii=False), file=file)
