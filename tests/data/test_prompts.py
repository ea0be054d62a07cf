from pathlib import Path

import pytest

from fednano_flwr.data.prompts import (
    IMAGE,
    answer_text,
    conversation,
    normalise_answer,
    user_content,
    user_text,
)
from fednano_flwr.data.sample import Picture, Sample

PICTURE = Picture(Path("image.png"))


def ask(**fields):
    plain = {"choices": ("this", "that", "none"), "answer": 1}
    return Sample("1", "Which?", group="g", subject="s", **{**plain, **fields})


def test_the_prompt_is_the_pinned_one():
    assert user_text(ask(context="Look.")) == (
        "Which?\n"
        "Context: Look.\n"
        "A. this\n"
        "B. that\n"
        "C. none\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert answer_text(ask()) == "B"


def test_no_context_is_no_line():
    assert user_text(ask()).splitlines()[:2] == ["Which?", "A. this"]


def test_the_picture_comes_first_and_only_where_there_is_one():
    (turn,) = conversation(ask(images=(PICTURE,)))
    assert turn["role"] == "user"
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert [part["type"] for part in user_content(ask())] == ["text"]


def test_each_letter_stands_right_before_the_picture_it_names():
    sample = ask(images=(PICTURE,), choices=(), choice_images=(PICTURE, PICTURE), context="Look.")
    assert user_content(sample) == [
        IMAGE,
        {"type": "text", "text": "Which?\nContext: Look.\nA. "},
        IMAGE,
        {"type": "text", "text": "\nB. "},
        IMAGE,
        {
            "type": "text",
            "text": "\nAnswer with the option's letter from the given choices directly.",
        },
    ]
    assert user_content(sample).count(IMAGE) == len(sample.pictures)


def test_a_free_answer_is_asked_for_as_a_word_or_phrase():
    sample = ask(choices=(), answer=None, free_answer="7,364", images=(PICTURE,))
    assert user_text(sample) == "Which?\nAnswer the question using a single word or phrase."
    assert answer_text(sample) == "7,364"


def test_more_options_than_letters_are_listed_without_them_and_answered_in_words():
    for count, shown in ((14, 14), (50, 50), (51, 0)):
        options = tuple(f"option {number}" for number in range(count))
        sample = ask(choices=options, answer=12)
        last = "Answer with one of these options directly."
        last = last if shown else "Answer the question using a single word or phrase."
        assert user_text(sample).splitlines() == ["Which?", *options[:shown], last]
        assert answer_text(sample) == "option 12"


def test_a_free_question_may_have_an_instruction_of_its_own_or_none():
    for own, text in {"Be brief.": "Which?\nBe brief.", "": "Which?"}.items():
        sample = ask(choices=(), answer=None, free_answer="this", instruction=own)
        assert user_text(sample) == text
        assert user_text(ask(instruction=own)) == user_text(ask())


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Seven.", "seven"),
        ("  A  red\nCircle ", "red circle"),
        ('"The answer!"', "answer"),
        ("(3)", "3"),
        ("7,364", "7364"),
        ("1,000,000", "1000000"),
        ("1,2", "1,2"),
        ("-5", "-5"),
        (".5", ".5"),
        ("3.50", "3.50"),
        ("$3", "$3"),
        ("a", "a"),
        ("an", "an"),
        ("", ""),
        ("the 'a' word", "a' word"),
        ("10:30", "10:30"),
    ],
)
def test_free_answers_are_compared_in_one_form(said, meant):
    assert normalise_answer(said) == meant
    assert normalise_answer(meant) == normalise_answer(said)


def test_several_pictures_come_before_the_text():
    sample = ask(images=(PICTURE, PICTURE), choices=(), choice_images=(PICTURE, PICTURE))
    assert [part["type"] for part in user_content(sample)][:3] == ["image", "image", "text"]
    assert user_content(sample).count(IMAGE) == len(sample.pictures) == 4
