"""Test questions of a run's own data set: the quickest look at what training changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fednano_flwr.ask.session import Answer, Asker, AskError
from fednano_flwr.config import ConfigError, Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.prompts import LETTERS, normalise_answer
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.table import Questions

RIGHT = "← right"


def shared_questions(dataset: Dataset) -> Questions:
    """The test questions that a run's clients shared.

    Raises:
        ConfigError: the data set cannot be read here, or each client cut its own test questions.
    """
    if dataset.test_fraction:
        raise ConfigError(
            "this run has no test questions that its clients shared: each cut its own from its "
            f"training questions (dataset.test-fraction is {dataset.test_fraction:g})"
        )
    try:
        return load_questions(dataset).test
    except DataError as error:
        raise ConfigError(
            f"the run's test questions cannot be read: {error} Where the data set lies elsewhere "
            "on this machine, give -c dataset.path=DIR."
        ) from None


def spread(questions: Questions, count: int) -> list[Sample]:
    """At most so many questions, evenly spread, none with pictures as its options."""
    step = max(1, len(questions) // max(1, count))
    found = (questions[index] for index in range(0, len(questions), step))
    return [sample for sample in found if not sample.choice_images][:count]


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
    for picture in sample.pictures:
        write(f"picture   {picture.path or 'in the table of the data set'}\n")
    for name, text in (("context", sample.context), ("question", sample.question)):
        if text:
            write(f"{name:8}  {text}\n")
    frozen, tuned = (asker.answer_sample(sample, frozen) for frozen in (True, False))
    write((_options if sample.num_options else _free)(sample, frozen, tuned))
    for name, answer in (("frozen", frozen), ("tuned", tuned)):
        for note in answer.notes:
            say(f"{name}: {note}")


def right_answer(sample: Sample) -> str:
    """The right option's text, or the free answer."""
    return sample.free_answer if sample.answer is None else sample.option_names[sample.answer]


def _options(sample: Sample, frozen: Answer, tuned: Answer) -> str:
    names = sample.option_names
    width = max(map(len, names))
    lines = [f"     {'':{width}}   frozen    tuned"]
    for index, name in enumerate(names):
        mark = f"  {RIGHT}" if index == sample.answer else ""
        shares = "  ".join(f"{100 * a.probabilities[index]:5.1f} %" for a in (frozen, tuned))
        lines.append(f"  {LETTERS[index]}. {name:{width}}  {shares}{mark}")
    return "\n".join(lines) + "\n"


def _free(sample: Sample, frozen: Answer, tuned: Answer) -> str:
    wanted = normalise_answer(sample.free_answer)
    rows: Sequence[tuple[str, str]] = (("frozen", frozen.text), ("tuned", tuned.text))
    lines = [
        f"{name:8}  {text}" + (f"  {RIGHT}" if normalise_answer(text) == wanted else "")
        for name, text in rows
    ]
    return "\n".join([*lines, f"{'right':8}  {sample.free_answer}"]) + "\n"
