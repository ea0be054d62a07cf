import numpy as np
import pytest

from fednano_demo.pictures import Bar, Clock, Icon, Style, render
from fednano_demo.questions import BASE, DOWNSTREAM, Question, draw_question, draw_questions
from fednano_demo.skills import DRAFTS, IMAGE_SKILLS, TEXT_SKILLS
from fednano_demo.words import (
    COLOUR_FACTS,
    COLOURS,
    FRACTIONS,
    HOURS,
    KIND_FACTS,
    NUMBERS,
    POSITIONS,
    RENAMED,
    SHAPES,
    TEMPLATES,
    split_words,
    vocabulary,
)


def solve(question: Question) -> str:
    """The right answer, read off the question's words and cells alone."""
    words = split_words(question.text)
    cells = question.cells or ()
    icons = [(place, cell) for place, cell in enumerate(cells) if isinstance(cell, Icon)]
    colours = [COLOURS[icon.colour] for _, icon in icons]

    def mentioned(pool):
        return [word for word in words if word in pool]

    match question.skill:
        case "counting":
            return str(len(icons))
        case "algebra":
            return str(len(icons) + int(mentioned(NUMBERS)[0]))
        case "estimation":
            return "yes" if len(icons) > int(mentioned(NUMBERS)[0]) else "no"
        case "comparing":
            return max(mentioned(COLOURS), key=colours.count)
        case "probability":
            return max(COLOURS, key=colours.count)
        case "fraction":
            assert colours.count(mentioned(COLOURS)[0]) == 1
            return FRACTIONS[len(icons) - 2]
        case "geometry":
            (shape,) = [i.shape for _, i in icons if COLOURS[i.colour] == mentioned(COLOURS)[0]]
            return SHAPES[shape]
        case "commonsense":
            (colour,) = [i.colour for _, i in icons if SHAPES[i.shape] == mentioned(SHAPES)[0]]
            return COLOURS[colour]
        case "spatial":
            (shape,) = [i.shape for p, i in icons if POSITIONS[p] == mentioned(POSITIONS)[0]]
            return SHAPES[shape]
        case "scene":
            (place,) = [p for p, i in icons if SHAPES[i.shape] == mentioned(SHAPES)[0]]
            return POSITIONS[place]
        case "pattern":
            assert [cells[p] for p in (0, 1, 3, 4)] == [cells[p] for p in (3, 4, 6, 7)]
            return SHAPES[cells[2].shape]
        case "time":
            (hour,) = [cell.hour for cell in cells if isinstance(cell, Clock)]
            return HOURS[hour]
        case "measurement":
            return str(sum(cell.halves for cell in cells if isinstance(cell, Bar)))
        case "example" | "category":
            facts = {**KIND_FACTS, **COLOUR_FACTS}
            group = mentioned(facts)
            if group:
                (member,) = [c for c in question.choices if c in facts[group[0]]]
                return member
            (group,) = [g for g, members in facts.items() if mentioned(members)]
            return group
    raise AssertionError(question.skill)


@pytest.mark.parametrize("skill", (*IMAGE_SKILLS, *TEXT_SKILLS))
def test_answer_is_right(skill):
    rng = np.random.default_rng(0)
    for _ in range(60):
        question = draw_question(skill, rng)
        assert question.choices[question.answer] == solve(question)
        assert len(set(question.choices)) == len(question.choices)


def test_same_seed_draws_the_same_questions():
    first, second = (draw_questions(tuple(DRAFTS), 68, np.random.default_rng(3)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a.text, a.choices, a.answer, a.cells) == (b.text, b.choices, b.answer, b.cells)
        assert np.array_equal(a.picture, b.picture)


def test_answers_are_spread_over_all_positions():
    questions = draw_questions(IMAGE_SKILLS, 2600, np.random.default_rng(1))
    for count in (2, 3, 4):
        answers = [q.answer for q in questions if len(q.choices) == count]
        shares = np.bincount(answers, minlength=count) / len(answers)
        assert abs(shares - 1 / count).max() < 0.06, (count, shares)


def test_skills_are_named_as_iconqa_names_them():
    assert set(IMAGE_SKILLS) == set(
        "geometry counting comparing spatial scene pattern time fraction estimation algebra "
        "measurement commonsense probability".split()
    )


def test_shift_changes_names_and_pictures_but_not_answers():
    for skill in IMAGE_SKILLS:
        base = draw_question(skill, np.random.default_rng(5), BASE)
        shifted = draw_question(skill, np.random.default_rng(5), DOWNSTREAM)
        assert base.answer == shifted.answer and base.cells == shifted.cells
        assert not np.array_equal(base.picture, shifted.picture)
    renamed = {old for pool in DOWNSTREAM.renamed for old in RENAMED[pool]}
    texts = [
        " ".join((q.text, *q.choices))
        for q in draw_questions(IMAGE_SKILLS, 260, np.random.default_rng(2), DOWNSTREAM)
        if q.skill != "time"
    ]
    assert not renamed & {word for text in texts for word in split_words(text)}


def test_renamed_words_are_in_the_vocabulary_and_in_no_pretraining_question():
    new = {name for names in RENAMED.values() for name in names.values()}
    assert new <= set(vocabulary())
    questions = draw_questions(tuple(DRAFTS), 17 * 40, np.random.default_rng(4))
    seen = {word for q in questions for text in (q.text, *q.choices) for word in split_words(text)}
    assert not new & seen
    assert seen <= set(vocabulary())


def test_every_skill_has_a_template():
    rng = np.random.default_rng(0)
    used = {DRAFTS[skill](rng).template for skill in DRAFTS for _ in range(20)}
    assert used == set(TEMPLATES)


def test_an_empty_cell_shows_paper_and_an_icon_its_colour():
    picture = render((Icon(1, 2), *[None] * 8), np.random.default_rng(0), Style(noise=0))
    assert tuple(picture[40, 40]) == (245, 245, 240)
    assert abs(picture[8, 8].astype(int) - (45, 70, 215)).max() < 45
