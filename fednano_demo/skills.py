"""What each skill asks: one function a skill draws a scene, the right answer and wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fednano_demo.pictures import Bar, Cell, Cells, Clock, Icon
from fednano_demo.words import (
    COLOUR_FACTS,
    COLOURS,
    FRACTIONS,
    HOURS,
    KIND_FACTS,
    NUMBERS,
    POSITIONS,
    SHAPES,
)

Rng = np.random.Generator


@dataclass(frozen=True)
class Draft:
    """A question before it is phrased.

    Attributes:
        template: key into `TEMPLATES`.
        answer: the right answer.
        pool: words that options are drawn from; only `answer` among them is right.
        fields: what the template's placeholders stand for.
        cells: the picture's nine cells, or None for a text-only question.
    """

    template: str
    answer: str
    pool: Sequence[str]
    fields: dict[str, str] = field(default_factory=dict)
    cells: Cells | None = None


def _scatter(rng: Rng, icons: Sequence[Icon]) -> tuple[Cells, list[int]]:
    """Put icons into cells of their own; also returns where each one went."""
    places = [int(place) for place in rng.permutation(9)[: len(icons)]]
    cells: list[Cell] = [None] * 9
    for place, icon in zip(places, icons, strict=True):
        cells[place] = icon
    return tuple(cells), places


def _any_icons(rng: Rng, count: int) -> list[Icon]:
    return [Icon(int(rng.integers(6)), int(rng.integers(6))) for _ in range(count)]


def _coloured_icons(rng: Rng, colours: Sequence[int]) -> list[Icon]:
    return [Icon(int(rng.integers(6)), int(colour)) for colour in colours]


def _distinct_icons(rng: Rng, count: int) -> list[Icon]:
    """Icons of which no two share a shape or a colour."""
    shapes, colours = rng.permutation(6)[:count], rng.permutation(6)[:count]
    return [Icon(int(s), int(c)) for s, c in zip(shapes, colours, strict=True)]


def counting(rng: Rng) -> Draft:
    count = int(rng.integers(1, 7))
    cells, _ = _scatter(rng, _any_icons(rng, count))
    return Draft("counting", NUMBERS[count], NUMBERS[1:7], cells=cells)


def comparing(rng: Rng) -> Draft:
    more, fewer = (int(colour) for colour in rng.permutation(6)[:2])
    low, high = sorted(int(count) for count in rng.permutation(4)[:2] + 1)
    cells, _ = _scatter(rng, _coloured_icons(rng, [more] * high + [fewer] * low))
    pair = [COLOURS[more], COLOURS[fewer]]
    first = int(rng.integers(2))
    fields = {"first": pair[first], "second": pair[1 - first]}
    return Draft("comparing", COLOURS[more], pair, fields, cells)


def geometry(rng: Rng) -> Draft:
    icons = _distinct_icons(rng, int(rng.integers(1, 5)))
    fields = {"colour": COLOURS[icons[0].colour]}
    return Draft("geometry", SHAPES[icons[0].shape], SHAPES, fields, _scatter(rng, icons)[0])


def commonsense(rng: Rng) -> Draft:
    icons = _distinct_icons(rng, int(rng.integers(1, 5)))
    fields = {"shape": SHAPES[icons[0].shape]}
    return Draft("commonsense", COLOURS[icons[0].colour], COLOURS, fields, _scatter(rng, icons)[0])


def spatial(rng: Rng) -> Draft:
    icons = _distinct_icons(rng, int(rng.integers(1, 6)))
    cells, places = _scatter(rng, icons)
    fields = {"position": POSITIONS[places[0]]}
    return Draft("spatial", SHAPES[icons[0].shape], SHAPES, fields, cells)


def scene(rng: Rng) -> Draft:
    icons = _distinct_icons(rng, int(rng.integers(1, 6)))
    cells, places = _scatter(rng, icons)
    fields = {"shape": SHAPES[icons[0].shape]}
    return Draft("scene", POSITIONS[places[0]], POSITIONS, fields, cells)


def pattern(rng: Rng) -> Draft:
    row, colour = [int(shape) for shape in rng.integers(0, 6, 3)], int(rng.integers(6))
    cells: Cells = (*(Icon(row[place % 3], colour) for place in range(8)), None)
    return Draft("pattern", SHAPES[row[2]], SHAPES, cells=cells)


def fraction(rng: Rng) -> Draft:
    count = int(rng.integers(2, 6))
    one, others = (int(colour) for colour in rng.permutation(6)[:2])
    cells, _ = _scatter(rng, _coloured_icons(rng, [one] + [others] * (count - 1)))
    return Draft("fraction", FRACTIONS[count - 2], FRACTIONS, {"colour": COLOURS[one]}, cells)


def probability(rng: Rng) -> Draft:
    likely, second, third = (int(colour) for colour in rng.permutation(6)[:3])
    count = int(rng.integers(3, 6))
    cells, _ = _scatter(rng, _coloured_icons(rng, [likely] * count + [second, third]))
    return Draft("probability", COLOURS[likely], COLOURS, cells=cells)


def algebra(rng: Rng) -> Draft:
    count, added = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    cells, _ = _scatter(rng, _any_icons(rng, count))
    fields = {"number": NUMBERS[added]}
    return Draft("algebra", NUMBERS[count + added], NUMBERS[2:8], fields, cells)


def time(rng: Rng) -> Draft:
    hour, cells = int(rng.integers(6)), [None] * 9
    clock: list[Cell] = [*cells]
    clock[int(rng.integers(9))] = Clock(hour)
    return Draft("time", HOURS[hour], HOURS, cells=tuple(clock))


def measurement(rng: Rng) -> Draft:
    length, row, colour = int(rng.integers(1, 7)), int(rng.integers(3)), int(rng.integers(6))
    cells: list[Cell] = [None] * 9
    for column in range((length + 1) // 2):
        cells[row * 3 + column] = Bar(min(length - 2 * column, 2), colour)
    return Draft("measurement", NUMBERS[length], NUMBERS[1:7], cells=tuple(cells))


def estimation(rng: Rng) -> Draft:
    count, bound = int(rng.integers(1, 8)), int(rng.integers(2, 6))
    cells, _ = _scatter(rng, _any_icons(rng, count))
    answer = "yes" if count > bound else "no"
    return Draft("estimation", answer, ("yes", "no"), {"number": NUMBERS[bound]}, cells)


def example(rng: Rng) -> Draft:
    of_kind = bool(rng.integers(2))
    facts = KIND_FACTS if of_kind else COLOUR_FACTS
    groups = [list(facts)[index] for index in rng.permutation(len(facts))]
    members = [facts[group][rng.integers(len(facts[group]))] for group in groups]
    if of_kind:
        return Draft("example of a kind", members[0], members, {"kind": groups[0]})
    return Draft("example of a colour", members[0], members, {"colour": groups[0]})


def category(rng: Rng) -> Draft:
    of_kind = bool(rng.integers(2))
    facts = KIND_FACTS if of_kind else COLOUR_FACTS
    group = list(facts)[rng.integers(len(facts))]
    fields = {"thing": facts[group][rng.integers(len(facts[group]))]}
    return Draft("kind of a thing" if of_kind else "colour of a thing", group, list(facts), fields)


def told_colour(rng: Rng) -> Draft:
    fields = {"shape": SHAPES[rng.integers(6)], "colour": COLOURS[rng.integers(6)]}
    return Draft("told colour", fields["colour"], COLOURS, fields)


def told_position(rng: Rng) -> Draft:
    fields = {"shape": SHAPES[rng.integers(6)], "position": POSITIONS[rng.integers(9)]}
    return Draft("told position", fields["position"], POSITIONS, fields)


Skill = Callable[[Rng], Draft]
_IMAGE_SKILLS: tuple[Skill, ...] = (
    *(counting, comparing, geometry, spatial, scene, pattern, time),
    *(fraction, estimation, algebra, measurement, commonsense, probability),
)
IMAGE_SKILLS = tuple(skill.__name__ for skill in _IMAGE_SKILLS)
"""Skills about a picture, named as IconQA's thirteen."""
TEXT_SKILLS = ("example", "category")
"""Skills about finite facts, without a picture."""
WARM_UP_SKILLS = ("told_colour", "told_position")
"""Reading exercises that only pretraining uses."""
DRAFTS: dict[str, Skill] = {
    skill.__name__: skill
    for skill in (*_IMAGE_SKILLS, example, category, told_colour, told_position)
}
