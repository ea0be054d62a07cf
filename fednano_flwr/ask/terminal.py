"""`fednano ask`: a question, or a test question of the run, answered on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from fednano_flwr.ask.asker import Answer, Asker, AskError
from fednano_flwr.data.metrics import exact
from fednano_flwr.data.prompts import LETTERS
from fednano_flwr.data.table import Questions

RIGHT = "← right"


def ask(
    asker: Asker,
    question: str,
    image: Path | None,
    choices: Sequence[str],
    hint: str,
    frozen: bool,
    write: Callable[[str], None],
    say: Callable[[str], None],
    sound: Path | None = None,
) -> None:
    """Ask, and write the answer as it comes.

    Args:
        write: takes pieces of text, lines' ends included.
        say: takes notices.
    """
    if choices:
        answer = asker.answer(question, image, choices, hint, frozen, sound)
        write(f"{answer.text}\n{as_table(choices, answer.probabilities)}")
    else:
        whole: list[Answer] = []
        pieces = asker.stream(question, image, hint, frozen, whole.append, sound)
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


def as_table(names: Sequence[str], *shares: Sequence[float], right: int | None = None) -> str:
    """Each choice on a line: its letter, its text, and how likely it is among them.

    Args:
        shares: of the choices, by each model that was asked.
        right: which choice is marked.
    """
    names = [name.strip() for name in names]
    width = max(map(len, names))
    return "".join(
        f"  {letter}. {name:{width}}  {'  '.join(f'{100 * share:5.1f} %' for share in each)}"
        f"{f'  {RIGHT}' if index == right else ''}\n"
        for index, (letter, name, *each) in enumerate(zip(LETTERS, names, *shares, strict=False))
    )


def show(
    asker: Asker,
    questions: Questions,
    number: int,
    write: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Ask the frozen and the tuned model a test question; write both answers and the right one.

    Args:
        number: from 1.
        say: takes notices.

    Raises:
        AskError: there is no such question.
    """
    if not 1 <= number <= len(questions):
        raise AskError(f"--example {number}: this run has test questions 1 to {len(questions)}")
    sample = questions[number - 1]
    write(f"test question {number} of {len(questions)}: {sample.subject}, id {sample.uid}\n")
    for file in chain.from_iterable(sample.media.values()):
        write(f"{file.noun:8}  {file.path or 'in the table of the data set'}\n")
    for name, text in (("context", sample.context), ("question", sample.question)):
        if text:
            write(f"{name:8}  {text}\n")
    frozen, tuned = (asker.answer_sample(sample, frozen) for frozen in (True, False))
    if sample.num_options:
        names, shares = sample.option_names, (frozen.probabilities, tuned.probabilities)
        write(f"     {'':{max(map(len, names))}}   frozen    tuned\n")
        write(as_table(names, *shares, right=sample.answer))
    else:
        references = sample.free_answer, *sample.references
        for name, text in (("frozen", frozen.text), ("tuned", tuned.text)):
            mark = f"  {RIGHT}" if exact(text, references) else ""
            write(f"{name:8}  {text}{mark}\n")
        write(f"{'right':8}  {sample.free_answer}\n")
    for name, answer in (("frozen", frozen), ("tuned", tuned)):
        for note in answer.notes:
            say(f"{name}: {note}")
