"""`fednano data`, as a user calls it."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from fednano_flwr.cli import app as cli
from fednano_flwr.config import RunConfig
from fednano_flwr.data.shard import read_shards
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.preview.clients import Preview
from fednano_flwr.preview.data import read_data
from fednano_flwr.preview.report import show
from tests.conftest import REPOSITORY
from tests.opened import recorded
from tests.tiny import write_scienceqa

Look = Callable[..., Result]


@pytest.fixture
def config(run_config: Callable[..., dict[str, Any]]) -> RunConfig:
    return RunConfig.parse(run_config())


@pytest.fixture
def look(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Look:
    """Runs it with the tiny model and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(run_config()))

    def call(*arguments: str) -> Result:
        given = ["data", "--app", str(REPOSITORY), "-c", "tiny.toml", *arguments]
        return CliRunner().invoke(cli.cli, given)

    return call


def cells(output: str, first: str) -> list[str]:
    """The cells of a table's row that begins so."""
    (line,) = re.findall(rf"^│ {first} +│(.*)│$", output, re.MULTILINE)
    return [cell.strip() for cell in line.split("│")]


def test_first_rows_and_figures_of_every_client_are_shown_and_no_weight_is_read(
    look: Look, config: RunConfig, encoder: QuestionEncoder
) -> None:
    with recorded() as opened:
        result = look("--clients", "3", "--rows", "2")
    assert result.exit_code == 0, result.output
    assert not opened
    shards = read_shards(config.dataset, config.seed, 3)
    known = encoder.processor.tokenizer.get_vocab()
    for client, shard in enumerate(shards):
        lengths = []
        for sample in (*shard.train, *shard.test):
            question = encoder.encode(sample)
            lengths.append(len(question.ids) + len(question.answer))
        row = cells(result.stdout, f"client {client}")
        assert row[:2] == [str(len(shard.train)), str(len(shard.test))]
        median, most = (sorted(lengths)[ceil(share * len(lengths)) - 1] for share in (0.5, 0.95))
        assert row[2:] == [*map(str, (median, most, max(lengths))), "0–1", "0"]
        for sample in shard.train[:2]:
            shown = result.stdout.partition(f"client {client}, {sample.uid} ")[2].split("\n\n")[0]
            places = int((encoder.encode(sample).ids == known["<image>"]).sum())
            assert (f"<image × {places}>" in shown) == bool(sample.pictures)
            (learned,) = re.findall(r"^loss \| (.*)$", shown, re.MULTILINE)
            assert learned.strip() == "ABCDEFGHIJ"[sample.answer]
            words = [*sample.question.rstrip("?").split(), *sample.choices]
            unknown = [word for word in words if word not in known]
            assert f"unknown    {len(unknown)} of" in shown if unknown else "unknown" not in shown
    for topic in ("topic0", "topic1", "topic2"):
        counts = [Counter(shard.train.groups)[topic] for shard in shards]
        assert cells(result.stdout, topic) == [str(count or "") for count in counts]


def test_one_client_alone(look: Look) -> None:
    result = look("--clients", "3", "--client", "1")
    assert "client 1, " in result.stdout and "client 0" not in result.stdout
    result = look("--clients", "3", "--client", "3")
    assert result.exit_code == 2 and "num-partitions 3" in result.output


def test_what_is_left_out_is_named_and_too_much_of_it_is_exit_status_2(
    look: Look, tmp_path: Path
) -> None:
    data = write_scienceqa(tmp_path / "data", train=30, test=6)
    problems = json.loads((data / "problems.json").read_text())
    problems["3"]["answer"] = 9
    problems["4"]["question"] = "w20 " * 200
    (data / "problems.json").write_text(json.dumps(problems))
    for number in "68":
        (data / "images" / "train" / number / "image.png").write_bytes(b"no picture")
    given = ["--clients", "1", "-c", f"dataset.path={data}", "-c", "llm.max-tokens=100"]
    result = look(*given)
    assert result.exit_code == 0, result.output
    assert "train: 1 answer is not one of the choices (3)" in result.stdout
    assert re.search(r"client 0: 1 its \d+ tokens .* llm.max-tokens = 100 \(4\)", result.stdout)
    assert "client 0: 2 picture cannot be decoded (6, 8)" in result.stdout
    assert cells(result.stdout, "client 0")[0] == "26"
    result = look(*given, "-c", "dataset.max-skipped=0.03")
    assert result.exit_code == 2
    assert "client 0 would fail" in result.stdout and "0.03" in result.stdout


def test_a_question_that_is_too_long_is_counted_by_what_is_done_with_it(look: Look) -> None:
    given = ["--clients", "1", "--rows", "60", "-c", "dataset.max-tokens=25"]
    skipped = look(*given)
    assert skipped.exit_code == 2
    (count,) = re.findall(r"client 0: (\d+) its \d+ tokens are more than", skipped.stdout)
    cut = look(*given, "-c", "dataset.too-long=cut", "-c", "dataset.max-skipped=1")
    (done,) = re.findall(r"client 0: (\d+) to dataset.max-tokens = 25", cut.stdout)
    left_out = cells(cut.stdout, "client 0")[-1]
    assert int(done) + int(left_out) == int(count) and int(done) > 0
    assert "\ncut " in cut.stdout and cells(cut.stdout, "client 0")[4] == "25"


def test_data_that_are_not_there_are_exit_status_2(look: Look, tmp_path: Path) -> None:
    result = look("-c", f"dataset.path={tmp_path}/nowhere")
    assert result.exit_code == 2 and f"{tmp_path}/nowhere" in result.output


def test_a_clients_own_shard_is_shown_as_the_whole_data_set_showed_it(
    look: Look, tiny_questions: Path, tmp_path: Path
) -> None:
    split = ["partition", "--app", str(REPOSITORY), "-c", f"dataset.path={tiny_questions}"]
    CliRunner().invoke(cli.cli, [*split, "--clients", "3", "--out", str(tmp_path / "shards")])
    own = look("--data-path", str(tmp_path / "shards" / "client-1"))
    assert own.exit_code == 0, own.output
    whole = look("--clients", "3", "--client", "1")

    def without_paths(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith(("data", "picture"))]

    assert without_paths(own.stdout) == without_paths(whole.stdout)


def test_colours_are_of_a_screen_and_marks_are_everywhere(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_data(config, 2, None)
    written = []
    for colours in (True, False):
        monkeypatch.delenv("NO_COLOR", raising=False)
        out = io.StringIO()
        show(Preview(config), data, 1, Console(file=out, force_terminal=colours, width=100))
        written.append(out.getvalue())
    coloured, plain = written
    assert "\x1b[1;32m" in coloured and "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert len(re.findall(r"^loss \| ", plain, re.MULTILINE)) == 2


def test_a_test_question_that_is_trained_on_is_named(look: Look, tmp_path: Path) -> None:
    rows = [{"question": f"w{20 + n}", "answer": "w37", "group": str(n)} for n in range(12)]
    for split, some in (
        ("train", rows),
        ("test", [rows[3] | {"group": "x"}, {**rows[4], "answer": "w38"}]),
    ):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
    own = ("dataset.name=table", f"dataset.path={tmp_path}", "dataset.partitioner=iid")
    result = look("--clients", "2", *(word for setting in own for word in ("-c", setting)))
    assert re.findall(r"^repeated.*$", result.stdout, re.MULTILINE) == [
        "repeated   1 in training and test alike (test.jsonl:1)"
    ]
