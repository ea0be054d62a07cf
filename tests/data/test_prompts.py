from pathlib import Path

from fednano_flwr.data.prompts import answer_letter, conversation, user_text
from fednano_flwr.data.sample import Sample

QUESTION = Sample("1", "Which?", ("this", "that", "none"), answer=1, group="g", context="Look.")


def test_the_prompt_is_the_pinned_one():
    assert user_text(QUESTION) == (
        "Which?\n"
        "Context: Look.\n"
        "A. this\n"
        "B. that\n"
        "C. none\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert answer_letter(QUESTION) == "B"


def test_no_context_is_no_line():
    without = Sample("1", "Which?", ("this", "that"), answer=0, group="g")
    assert user_text(without).splitlines()[:2] == ["Which?", "A. this"]


def test_the_picture_comes_first_and_only_where_there_is_one():
    pictured = Sample("1", "Which?", ("this", "that"), 0, "g", image=Path("image.png"))
    assert [part["type"] for part in conversation(pictured)[0]["content"]] == ["image", "text"]
    assert [part["type"] for part in conversation(QUESTION)[0]["content"]] == ["text"]
