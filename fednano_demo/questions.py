"""Phrase, shift and illustrate a skill's draft: the demo's questions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from fednano_demo.pictures import Cells, Style, render
from fednano_demo.skills import DRAFTS
from fednano_demo.words import RENAMED, TEMPLATES
from fednano_flwr.data.sample import Sample


@dataclass(frozen=True)
class Shift:
    """A distribution of questions: how pictures look and which pools of words have new names."""

    style: Style = field(default_factory=Style)
    renamed: tuple[str, ...] = ()

    def rename(self, text: str) -> str:
        """Replace every word that this shift renames."""
        names = {old: new for pool in self.renamed for old, new in RENAMED[pool].items()}
        return re.sub(r"[\w-]+", lambda match: names.get(match[0], match[0]), text)


BASE = Shift()
"""What the model is pretrained on."""
DOWNSTREAM = Shift(style=Style(wash=0.45), renamed=("shapes",))
"""What the adapters have to learn: new words, mostly a matter of the text adapter, and pale
pictures, mostly one of the image adapter. Neither alone gets as far as both."""
DOWNSTREAM_IN_WORDS = """\
- Pictures are washed out: every pixel lies 45 % of the way to white, so features shrink towards
  those of empty cells.
- The six shapes have new names ("disc" for "circle" and so on), words that pretraining never used.
"""


@dataclass(frozen=True, eq=False)
class Question:
    """One multiple-choice question of the demo.

    Attributes:
        skill: a key of `DRAFTS`.
        text: the question itself.
        choices: two to four options in random order.
        answer: index of the right option.
        cells: what the picture's cells hold, row by row; None for a text-only question.
        picture: (48, 48, 3) uint8, or None for a text-only question.
    """

    skill: str
    text: str
    choices: tuple[str, ...]
    answer: int
    cells: Cells | None
    picture: np.ndarray | None

    def sample(self, uid: str = "") -> Sample:
        """The question in the form that datasets reach the project in, without its picture."""
        return Sample(
            uid, self.text, self.skill, self.skill, choices=self.choices, answer=self.answer
        )


def draw_question(skill: str, rng: np.random.Generator, shift: Shift = BASE) -> Question:
    """Draw one question of a skill from a distribution."""
    draft = DRAFTS[skill](rng)
    wrong = [word for word in draft.pool if word != draft.answer]
    count = min(int(rng.integers(2, 5)), len(wrong) + 1)
    choices = [draft.answer, *(wrong[index] for index in rng.permutation(len(wrong))[: count - 1])]
    order = [int(index) for index in rng.permutation(count)]
    phrasing = TEMPLATES[draft.template][rng.integers(2)]
    # A clock's hours keep their digits: they are names of hands' directions, not numbers.
    rename = (lambda text: text) if skill == "time" else shift.rename
    return Question(
        skill=skill,
        text=rename(phrasing.format(**draft.fields)),
        choices=tuple(rename(choices[index]) for index in order),
        answer=order.index(0),
        cells=draft.cells,
        picture=None if draft.cells is None else render(draft.cells, rng, shift.style),
    )


def draw_questions(
    skills: tuple[str, ...], count: int, rng: np.random.Generator, shift: Shift = BASE
) -> list[Question]:
    """Draw `count` questions, the skills taking turns."""
    return [draw_question(skills[index % len(skills)], rng, shift) for index in range(count)]
