"""docs/own-data.md: its files are written and its commands run, in their order.

Output that the page shows is what they print; a line "…" stands for lines that are left out.
"""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from fednano_flwr.cli import app as cli
from fednano_flwr.config import RunConfig, project
from fednano_flwr.in_process import run_in_process
from tests.conftest import REPOSITORY
from tests.data.real_rows import write_captions, write_easy, write_scienceqa

PAGE = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^`(\S+)`:\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDER = "/home/me"
"""Where the page's reader is."""


class Block(NamedTuple):
    """A file to write, commands, or what they print."""

    file: str
    kind: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.text.splitlines() if self.kind == "sh"]


BLOCKS = [Block(*found) for found in BLOCK.findall(PAGE)]


def write_files(folder: Path) -> None:
    """Write every file of the page and run its scripts, as a reader would."""
    for block in BLOCKS:
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        for command in block.commands:
            if command[0] == "python":
                runpy.run_path(str(folder / command[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's folder, with the page's files."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FEDNANO_CACHE", str(folder / "cache"))
        write_files(folder)
        yield folder


def in_order(shown: str, printed: str) -> str:
    """The first line of what is shown that is not printed after the one before it; "" for none."""
    there = iter([line.rstrip() for line in printed.splitlines()])
    for line in shown.splitlines():
        if line not in ("", "…") and line.rstrip() not in there:
            return line
    return ""


def test_fednano_data_prints_what_the_page_shows(folder: Path) -> None:
    looked = 0
    for block, after in zip(BLOCKS, [*BLOCKS[1:], Block("", "", "")], strict=True):
        for command in block.commands:
            if command[:2] != ["fednano", "data"]:
                continue
            result = CliRunner().invoke(cli.cli, command[1:], env={"COLUMNS": "110"})
            assert result.exit_code == 0, result.output
            assert "\nleft out" not in result.stdout
            if after.kind == "text":
                printed = result.stdout.replace(str(folder), FOLDER)
                assert not in_order(after.text, printed), printed
            looked += 1
    assert looked >= 6


def test_easy_vqa_is_learned_by_five_clients(folder: Path, tmp_path: Path) -> None:
    for split, rows in (("train", 60), ("test", 20)):
        lines = (folder / "easy" / f"{split}.jsonl").read_text().splitlines()[:rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        (tmp_path / split).symlink_to(folder / "easy" / split)
    own = {"dataset.name": "messages", "dataset.path": str(tmp_path), "num-server-rounds": 1}
    own |= {"dataset.partitioner": "iid", "run.dir": str(tmp_path), "dataset.metric": "contains"}
    rounds = run_in_process(RunConfig.parse(project.defaults(REPOSITORY) | own), 5).rounds
    assert sum(rounds[0]["test_questions_per_client"].values()) == 20
    assert rounds[1]["test_loss"] < rounds[0]["test_loss"]


def run(folder: Path, *arguments: str) -> str:
    """What the real `fednano run` prints; it has to complete."""
    command = [sys.executable, "-m", "fednano_flwr.cli", "run", "--app", str(REPOSITORY)]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_every_run_of_the_page_completes(folder: Path) -> None:
    runs = [c for block in BLOCKS for c in block.commands if c[:2] == ["fednano", "run"]]
    assert len(runs) >= 2
    for command in runs:
        printed = run(folder, *command[2:])
        assert "round  2 " in printed and "look at it with" in printed


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("form", "given", "metric"),
    [
        ("table", ["dataset.name=table", "dataset.columns=choices=options"], "accuracy"),
        (
            "captions.csv",
            [
                *("dataset.name=table", "dataset.test-fraction=0.2", "dataset.metric=rouge-l"),
                "dataset.instruction=Describe the picture.",
            ],
            "ROUGE-L",
        ),
        ("science", ["dataset.name=messages", "dataset.metric=f1"], "token F1"),
        ("science", ["dataset.name=table", "dataset.group=topic"], "accuracy"),
    ],
)
def test_rows_that_others_made_are_learned_by_the_real_command(
    form: str,
    given: list[str],
    metric: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "cache"))
    if form == "science":
        (tmp_path / form).mkdir()
        sample = request.getfixturevalue("sample_data") / "scienceqa"
        write_scienceqa(sample, tmp_path / form)
    elif form == "table":
        write_easy(tmp_path)
    else:
        write_captions(tmp_path)
    own = [f"dataset.path={form}", "num-server-rounds=1", "dataset.partitioner=iid", *given]
    own += ["dataset.max-skipped=0.9", "dataset.min-partition-size=1"]
    printed = run(tmp_path, *[word for one in own for word in ("-c", one)])
    first, last = re.findall(rf"^round  [01] .* test loss +(\S+)  {metric} ", printed, re.MULTILINE)
    assert float(last) < float(first)
