"""Test questions of a run's own data, asked of the frozen and the tuned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from fednano_flwr.ask.examples import RIGHT, shared_questions, show, spread
from fednano_flwr.ask.opening import open_asker, settings_of
from fednano_flwr.ask.session import Answer, AskError
from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.table import in_memory
from fednano_flwr.runs.results import load_run
from tests.ask.conftest import Asked


class Told:
    """An asker that says what it was told to, and notes the questions."""

    def __init__(self, frozen: Answer, tuned: Answer) -> None:
        self.answers = {True: frozen, False: tuned}
        self.asked: list[tuple[Sample, bool]] = []

    def answer_sample(self, sample: Sample, frozen: bool = False) -> Answer:
        self.asked.append((sample, frozen))
        return self.answers[frozen]


def shown(asker: Any, sample: Sample, number: int = 1) -> str:
    pieces: list[str] = []
    show(asker, in_memory([sample]), number, pieces.append, pieces.append)
    return "".join(pieces)


def test_both_models_shares_stand_beside_the_right_option() -> None:
    sample = Sample("7", "Which?", "g", "animals", ("a cat", "ox"), answer=1, context="Look.")
    asker = Told(Answer("a cat", (0.75, 0.25)), Answer("ox", (0.125, 0.875)))
    assert shown(asker, sample) == (
        "test question 1 of 1: animals, id 7\n"
        "context   Look.\n"
        "question  Which?\n"
        "             frozen    tuned\n"
        "  A. a cat   75.0 %   12.5 %\n"
        f"  B. ox      25.0 %   87.5 %  {RIGHT}\n"
    )
    assert asker.asked == [(sample, True), (sample, False)]


def test_a_free_answer_is_marked_where_it_is_right_after_normalising() -> None:
    sample = Sample("7", "How many?", "g", "numbers", free_answer="two")
    text = shown(Told(Answer("blue"), Answer("Two.")), sample)
    assert text.splitlines()[2:] == ["frozen    blue", f"tuned     Two.  {RIGHT}", "right     two"]


def test_an_answer_that_was_cut_is_noted_with_whose_it_is() -> None:
    sample = Sample("7", "How many?", "g", "numbers", free_answer="two")
    text = shown(Told(Answer("two"), Answer("a lot of", (), 3, True, ("cut",))), sample)
    assert text.endswith("right     two\ntuned: cut")


def test_options_that_are_pictures_are_numbered(tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(2)]
    sample = Sample(
        "7", "Which?", "g", "s", choice_images=tuple(Picture(path=f) for f in files), answer=0
    )
    text = shown(Told(Answer("picture 1", (1, 0)), Answer("picture 1", (1, 0))), sample)
    assert all(f"picture   {file}\n" in text for file in files)
    assert "  A. picture 1" in text and "  B. picture 2" in text
    assert not spread(in_memory([sample]), 6)


def test_a_question_that_is_not_there_is_refused_with_the_ones_that_are() -> None:
    sample = Sample("7", "Which?", "g", "s", free_answer="two")
    for number in (-1, 2):
        with pytest.raises(AskError, match=f"--example {number}: .* questions 1 to 1"):
            shown(Told(Answer(""), Answer("")), sample, number)


def test_a_test_question_gets_the_answer_of_the_same_question_typed_in(asked: Asked) -> None:
    run = load_run(asked.run)
    questions = shared_questions(settings_of(run, []).dataset)
    assert len(questions) == 24
    sample = next(sample for sample in questions if sample.images)
    with open_asker(asked.run) as asker:
        for frozen in (True, False):
            typed = asker.answer(
                sample.question, sample.images[0].path, sample.choices, sample.context, frozen
            )
            assert asker.answer_sample(sample, frozen) == typed
            other = replace(sample, answer=(sample.answer + 1) % sample.num_options)
            assert asker.answer_sample(other, frozen) == typed


def test_offered_questions_are_spread_over_the_test_split(tiny_questions: Path) -> None:
    questions = in_memory([Sample(str(n), "?", "g", "s", free_answer="x") for n in range(24)])
    assert [sample.uid for sample in spread(questions, 6)] == ["0", "4", "8", "12", "16", "20"]
    assert len(spread(questions, 100)) == 24 and not spread(questions[:0], 6)


def test_the_command_asks_both_models(asked: Asked) -> None:
    result = CliRunner().invoke(cli, ["ask", str(asked.run), "--example", "1"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("test question 1 of 24: natural science, id 60\npicture   ")
    assert result.output.count(RIGHT) == 1 and "frozen    tuned" in result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a question, or --example N"),
        (["--example", "1", "what?"], "give a question, or --example N"),
        (["--example", "1", "--choices", "a;b"], "--example has its picture and choices"),
        (["--example", "25"], "--example 25: this run has test questions 1 to 24"),
        (["--example", "1", "-c", "dataset.path=/nowhere"], "give -c dataset.path=DIR"),
    ],
)
def test_what_cannot_be_shown_is_said(asked: Asked, arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(cli, ["ask", str(asked.run), *arguments])
    assert result.exit_code == 2
    assert reason in " ".join(result.output.replace("│", " ").split())


def test_a_run_whose_clients_cut_their_own_tests_has_none_to_share(asked: Asked) -> None:
    dataset = replace(load_run(asked.run).config.dataset, test_fraction=0.2)
    with pytest.raises(ConfigError, match=r"dataset.test-fraction is 0.2"):
        shared_questions(dataset)


def test_a_picture_that_is_gone_is_not_offered(asked: Asked, tmp_path: Path) -> None:
    from fednano_flwr.ask.web import _offered

    good = tmp_path / "good.png"
    Image.new("RGB", (4, 4)).save(good)
    samples = [
        Sample(str(file), "?", "g", "s", ("a", "b"), answer=1, images=(Picture(path=file),))
        for file in (tmp_path / "gone.png", good)
    ]
    assert [values[1:] for values in _offered(samples, tmp_path)] == [("?", "a\nb", "", "b")]
