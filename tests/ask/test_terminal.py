"""`fednano ask`, as a user calls it, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fednano_flwr.ask import opening
from fednano_flwr.ask.asker import Answer, AskError
from fednano_flwr.ask.terminal import RIGHT, show
from fednano_flwr.cli.app import cli
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.table import in_memory
from fednano_flwr.exchange.wire.auth import make_token
from tests.ask.conftest import QUESTION, Asked
from tests.export.made_up import write_run
from tests.sounds import as_file, noise, tone


def ask(run: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["ask", str(run), *arguments])


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


FREE = Sample("7", "How many?", "g", "numbers", free_answer="two")


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
    text = shown(Told(Answer("blue"), Answer("Two.", (), 3, True, ("cut",))), FREE)
    assert text.splitlines()[2:] == [
        "frozen    blue",
        f"tuned     Two.  {RIGHT}",
        "right     two",
        "tuned: cut",
    ]


def test_any_of_several_right_answers_is_marked() -> None:
    several = replace(FREE, references=("a pair",))
    text = shown(Told(Answer("A pair."), Answer("three")), several)
    assert text.splitlines()[2:4] == [f"frozen    A pair.  {RIGHT}", "tuned     three"]


def test_options_that_are_pictures_are_numbered(tmp_path: Path) -> None:
    pictures = tuple(Picture(path=tmp_path / f"{k}.png") for k in range(2))
    sample = Sample("7", "Which?", "g", "s", choice_images=pictures, answer=0)
    text = shown(Told(Answer("picture 1", (1, 0)), Answer("picture 1", (1, 0))), sample)
    assert all(f"picture   {picture.path}\n" in text for picture in pictures)
    assert "  A. picture 1" in text and "  B. picture 2" in text


@pytest.mark.parametrize("number", [-1, 2])
def test_a_question_that_is_not_there_is_refused_with_the_ones_that_are(number: int) -> None:
    with pytest.raises(AskError, match=f"--example {number}: .* questions 1 to 1"):
        shown(Told(Answer(""), Answer("")), FREE, number)


def test_a_choice_is_shown_with_its_probabilities(asked: Asked) -> None:
    found = ask(asked.run, "--image", str(asked.picture), "--choices", "w30;w31", QUESTION)
    lines = found.stdout.splitlines()
    assert found.exit_code == 0 and lines[0] in ("w30", "w31") and found.stderr == ""
    assert lines[1].split()[:2] == ["A.", "w30"] and lines[2].endswith("%")


def test_a_test_question_is_asked_of_both_models(asked: Asked) -> None:
    result = ask(asked.run, "--example", "1")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("test question 1 of 24: natural science, id 60\npicture   ")
    assert result.output.count(RIGHT) == 1 and "frozen    tuned" in result.output


def test_where_an_answer_was_cut_is_noted(asked: Asked) -> None:
    found = ask(asked.run, "--max-tokens", "2", QUESTION)
    assert found.exit_code == 0 and len(found.stdout.split()) == 2
    assert "note: cut after 2 tokens; --max-tokens N lets it go on\n" in found.stderr


def test_a_model_that_hears_is_asked_about_a_sound(
    asked: Asked,
    run_config: Callable[..., dict[str, Any]],
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    model = family_folder("qwen2_audio")
    run, _ = write_run(run_config(model__name=str(model)), 0.5, 0.75, sites=("text", "audio"))
    files = {name: tmp_path / f"{name}.wav" for name in ("noise", "tone", "missing")}
    files["noise"].write_bytes(as_file(noise(0)))
    files["tone"].write_bytes(as_file(tone(400)))
    about = {name: ("--audio", str(file), QUESTION) for name, file in files.items()}
    found = {name: ask(run, "--choices", "w30;w31", *asks) for name, asks in about.items()}
    assert found["noise"].exit_code == found["tone"].exit_code == 0
    assert found["noise"].stdout != found["tone"].stdout
    free = ask(run, *about["tone"])
    assert free.exit_code == 0 and free.stdout.strip()
    assert found["missing"].exit_code == 2 and str(files["missing"]) in found["missing"].stderr
    for refused in (ask(run, "--image", str(asked.picture), "w20"), ask(asked.run, *about["tone"])):
        assert refused.exit_code == 2 and "the model takes no" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "give a question, or --example N"),
        (("--example", "1", "what?"), 2, "give a question, or --example N"),
        (("--example", "1", "--choices", "a;b"), 2, "--example has its picture and choices"),
        (("--example", "25"), 2, "test questions 1 to 24"),
        (("--example", "1", "-c", "dataset.path=/nowhere"), 2, "give -c dataset.path=DIR"),
        ((" ",), 2, "the question is empty"),
        (("which \U000f0ff0 ?",), 2, "its text holds a character for private use"),
        (("--image", "missing.png", "w20"), 2, "image missing.png: there is no such file"),
        (("--image", "RUN/config.json", "w20"), 2, "cannot be read as a picture"),
        (("--choices", "w30", "w20"), 2, "1 choices; there can be 2 to 10"),
        (("--choices", "w30;", "w20"), 2, "one of the choices is empty"),
        (("caf\udce9?",), 2, "the question is not UTF-8 after 'caf'"),
        (("--choices", "w30;\udce9", "w20"), 2, "the text of a choice is not UTF-8"),
        (("--hint", "\udce9", "w20"), 2, "the context is not UTF-8"),
        (("-c", "edge.device=cuda:99", "w20"), 2, "-c edge.device=cpu -c llm.device=cpu"),
        (("-c", "llm.device=cuda:99", "w20"), 2, "llm.device = 'cuda:99'"),
        (("-c", "llm.max-tokens=4", "w20"), 1, "4 (llm.max-tokens)"),
        (("-c", "adapter.rank=9", "w20"), 2, "adapter.rank"),
        (("--token-file", "x", "w20"), 2, "give its --llm"),
        (("--llm", "192.0.2.1:99", "--token-file", "TOKEN", "w20"), 2, "--ca-cert"),
        (("--llm", "127.0.0.1", "--token-file", "TOKEN", "w20"), 2, "must be HOST:PORT"),
        (("--llm", "127.0.0.1:9", "--token-file", "TOKEN", "w20"), 1, "127.0.0.1:9 did not answer"),
        (("--llm", "127.0.0.1:9", "--token-file", "none", "w20"), 2, "none: cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_said(
    arguments: tuple[str, ...],
    status: int,
    says: str,
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "RETRY_SECONDS", 0.2)
    make_token(tmp_path / "token")
    named = {"RUN/config.json": str(asked.run / "config.json"), "TOKEN": str(tmp_path / "token")}
    found = ask(asked.run, *(named.get(one, one) for one in arguments))
    assert found.exit_code == status, found.output
    assert says in " ".join(found.stderr.replace("│", " ").split())
    assert sum(line.startswith("error: ") for line in found.stderr.splitlines()) <= 1


def test_a_folder_that_is_no_run_or_has_no_adapters_is_refused(
    asked: Asked, tmp_path: Path
) -> None:
    for name in ("config.json", "environment.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((asked.run / name).read_bytes())
    for run, says in ((tmp_path, "adapter_model.safetensors"), (tmp_path / "x", "no run's folder")):
        found = ask(run, "w20")
        assert found.exit_code == 2 and says in found.stderr


def test_a_service_on_a_device_that_is_not_there_is_refused(tiny_model: Path) -> None:
    found = CliRunner().invoke(cli, ["serve", str(tiny_model), "--device", "cuda:99"])
    assert found.exit_code == 2 and "--device cpu" in found.stderr
