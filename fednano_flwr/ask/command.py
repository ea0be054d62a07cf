"""`fednano ask`: one question, answered on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fednano_flwr.ask.session import Answer, Asker
from fednano_flwr.data.prompts import LETTERS

SEPARATOR = ";"


def split_choices(text: str) -> list[str]:
    """The choices in "a;b;c"; none in ""."""
    return text.split(SEPARATOR) if text.strip() else []


def ask(
    asker: Asker,
    question: str,
    image: Path | None,
    choices: Sequence[str],
    hint: str,
    frozen: bool,
    write: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Ask, and write the answer as it comes.

    Args:
        write: takes pieces of text, lines' ends included.
        say: takes notices.
    """
    if choices:
        answer = asker.answer(question, image, choices, hint, frozen)
        write(f"{answer.text}\n{as_table(choices, answer.probabilities)}")
    else:
        whole: list[Answer] = []
        pieces = asker.stream(question, image, hint, frozen, whole.append)
        try:
            for piece in pieces:
                write(piece)
        finally:
            write("\n")
        (answer,) = whole
        if not answer.text:
            say("the model's answer is empty")
    for note in answer.notes:
        say(note)


def as_table(choices: Sequence[str], probabilities: Sequence[float]) -> str:
    """Each choice on a line: its letter, its text, how likely it is among them."""
    names = [choice.strip() for choice in choices]
    width = max(map(len, names))
    return "".join(
        f"  {letter}. {name:{width}}  {100 * probability:5.1f} %\n"
        for letter, name, probability in zip(LETTERS, names, probabilities, strict=False)
    )
