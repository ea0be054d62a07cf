"""Every word the demo's questions are made of, and the vocabulary that follows from them."""

from __future__ import annotations

import re

from fednano_flwr.data.prompts import LETTERS

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")
POSITIONS = (
    *("top-left", "top", "top-right"),
    *("left", "middle", "right"),
    *("bottom-left", "bottom", "bottom-right"),
)
NUMBERS = tuple(str(number) for number in range(10))
FRACTIONS = ("half", "third", "quarter", "fifth")
HOURS = ("12", "2", "4", "6", "8", "10")

KIND_FACTS = {
    "mammal": ("dog", "cat", "whale", "horse", "bat"),
    "bird": ("eagle", "owl", "duck", "penguin", "parrot"),
    "insect": ("ant", "bee", "moth", "beetle", "wasp"),
    "metal": ("iron", "copper", "gold", "zinc", "silver"),
    "gas": ("oxygen", "helium", "neon", "steam", "nitrogen"),
    "planet": ("Mars", "Venus", "Saturn", "Jupiter", "Earth"),
}
COLOUR_FACTS = {
    "red": ("strawberry", "tomato", "cherry", "ruby", "brick"),
    "green": ("grass", "lettuce", "cucumber", "moss", "spinach"),
    "blue": ("sky", "ocean", "sapphire", "denim", "cornflower"),
    "yellow": ("banana", "lemon", "corn", "butter", "sunflower"),
    "cyan": ("lagoon", "aquamarine", "turquoise", "glacier", "topaz"),
    "magenta": ("fuchsia", "orchid", "beetroot", "peony", "raspberry"),
}

TEMPLATES = {
    "counting": ("How many icons are there?", "What is the number of icons?"),
    "comparing": (
        "Are there more {first} or {second} icons?",
        "Which are more common, {first} or {second} icons?",
    ),
    "geometry": ("Which shape is {colour}?", "What is the shape of the {colour} icon?"),
    "commonsense": ("What colour is the {shape}?", "Which colour does the {shape} have?"),
    "spatial": ("Which shape is at the {position}?", "What icon is in the {position} cell?"),
    "scene": ("Where is the {shape}?", "In which cell is the {shape}?"),
    "pattern": ("Which shape completes the pattern?", "What icon comes next in the pattern?"),
    "fraction": (
        "What fraction of the icons is {colour}?",
        "Which part of the icons is {colour}?",
    ),
    "probability": ("Which colour is most likely?", "What colour would you most likely pick?"),
    "algebra": (
        "How many icons are there if you add {number}?",
        "What is the number of icons plus {number}?",
    ),
    "time": ("What time does the clock show?", "Which hour is it on the clock?"),
    "measurement": ("How long is the bar?", "What is the length of the bar?"),
    "estimation": (
        "Are there more than {number} icons?",
        "Is the number of icons above {number}?",
    ),
    "example of a kind": ("Which of these is a {kind}?", "What is an example of a {kind}?"),
    "example of a colour": ("Which of these is {colour}?", "What thing has the colour {colour}?"),
    "kind of a thing": ("What kind of thing is {thing}?", "Which group does {thing} belong to?"),
    "colour of a thing": ("What colour is {thing}?", "Which colour does {thing} have?"),
    "told colour": (
        "The {shape} is {colour}. What colour is the {shape}?",
        "The {shape} is {colour}. Which colour does the {shape} have?",
    ),
    "told position": (
        "The {shape} is at the {position}. Where is the {shape}?",
        "The {shape} is at the {position}. In which cell is the {shape}?",
    ),
}
"""Two phrasings of every kind of question."""

RENAMED = {
    "shapes": dict(
        zip(SHAPES, ("disc", "box", "wedge", "spark", "valentine", "plus-sign"), strict=True)
    ),
    "colours": dict(
        zip(COLOURS, ("scarlet", "jade", "azure", "amber", "teal", "purple"), strict=True)
    ),
    "positions": dict(
        zip(
            POSITIONS,
            ("NW", "north", "NE", "west", "centre", "east", "SW", "south", "SE"),
            strict=True,
        )
    ),
    "numbers": dict(
        zip(
            NUMBERS[1:9],
            ("one", "two", "three", "four", "five", "six", "seven", "eight"),
            strict=True,
        )
    ),
    "fractions": dict(zip(FRACTIONS, ("1/2", "1/3", "1/4", "1/5"), strict=True)),
    "verdicts": {"yes": "true", "no": "false"},
}
"""Pools of words and the names a shift may give them; pretraining never shows the new names."""

OPEN_ENDING = "Short answer"
"""Ends a pretraining question that has no options."""

PAD, UNKNOWN, IMAGE, END = "<pad>", "<unk>", "<image>", "</s>"
RIGHT, WRONG, EMPTY = "<right>", "<wrong>", "empty"
"""Targets of pretraining's extra losses; they occur in no prompt."""


def split_words(text: str) -> list[str]:
    """The words of a text, without the punctuation that the tokenizer drops too."""
    return re.sub(r"[?():.,]", " ", text).split()


def vocabulary() -> dict[str, int]:
    """Every token of the demo with its id: special ones first, renamed words last."""
    words = [PAD, UNKNOWN, IMAGE, END, RIGHT, WRONG, EMPTY, *LETTERS, "Answer"]
    words += split_words(OPEN_ENDING)
    for phrasings in TEMPLATES.values():
        for phrasing in phrasings:
            words += split_words(re.sub(r"\{.*?\}", "", phrasing))
    words += [*SHAPES, *COLOURS, *POSITIONS, *NUMBERS, *FRACTIONS, *HOURS, "yes", "no"]
    for facts in (KIND_FACTS, COLOUR_FACTS):
        for group, members in facts.items():
            words += [group, *members]
    for names in RENAMED.values():
        words += names.values()
    return {word: index for index, word in enumerate(dict.fromkeys(words))}
