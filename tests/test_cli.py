from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fednano_flwr.base.console import ALL_DONE
from fednano_flwr.cli import app as cli
from fednano_flwr.cli import screen
from fednano_flwr.config import project
from fednano_flwr.launcher.environment import LaunchError
from fednano_flwr.launcher.launch import COMPLETED, RunStatus
from fednano_flwr.preflight import read_questions

ROOT = Path(__file__).parents[1]


@pytest.fixture
def launched(monkeypatch, tmp_path) -> list[dict[str, Any]]:
    """Replaces launching and the check of names; holds what would have been launched."""
    calls: list[dict[str, Any]] = []

    def launch(app, run_config, clients, client_cpus, client_gpus, on_line, watch):
        calls.append({"app": app, "run_config": run_config, "clients": clients})
        on_line("INFO :      Starting Flower Simulation")
        on_line("fednano | [b]round 1[/b]")
        return RunStatus(1, COMPLETED, "", None)

    monkeypatch.setattr(cli, "launch", launch)
    monkeypatch.setattr(cli, "validate", lambda config: None)
    monkeypatch.setattr(cli, "read_questions", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return calls


def run(*arguments: str):
    return CliRunner().invoke(cli.cli, ["run", "--app", str(ROOT), *arguments])


def refuse(kind: type[BaseException], *arguments: Any):
    def raiser(*_: Any) -> None:
        raise kind(*arguments)

    return raiser


def test_later_overrides_win_over_files_and_files_over_the_defaults(launched, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "x.toml").write_text('seed = 1\nadapter.rank = 8\n[edge]\ndevice = "cuda"')
    result = run("-c", "seed=5", "-c", "conf/x.toml", "-c", "adapter.rank=4")
    assert result.exit_code == 0, result.output
    config = launched[0]["run_config"]
    assert (config["seed"], config["adapter.rank"], config["edge.device"]) == (1, 4, "cuda")
    assert config["batch-size"] == project.defaults(ROOT)["batch-size"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-c", "bach-size=4"], "Did you mean batch-size?"),
        (["-c", "batch-size=many"], "batch-size = 'many': must be of type int"),
        (["-c", "adapter.dropout=1.5"], "adapter.dropout = 1.5: must be in [0, 1)"),
        (["-c", "run.name='x"], "not valid TOML"),
        (["-c", "adapter.sites=['image']"], "join names by commas"),
        (["-c", "nothing"], "give key=value or a file that ends in .toml"),
        (["-c", "missing.toml"], "missing.toml: No such file"),
        (["-c", "min-available-nodes=9"], "min-available-nodes = 9: there are only 5"),
        (["-c", "min-replies=6", "-c", "fraction-train=0.4"], "min-replies = 6: there are only 5"),
        (["--app", "nowhere"], "there is no pyproject.toml in"),
    ],
)
def test_a_typo_exits_with_2_and_says_what_to_do_without_a_traceback(launched, arguments, says):
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output
    assert launched == []


def test_questions_that_cannot_be_dealt_exit_with_2_before_anything_is_started(
    launched, monkeypatch, tiny_questions
):
    monkeypatch.setattr(cli, "read_questions", read_questions)
    data = ("-c", f"dataset.path={tiny_questions}", "-c", "dataset.min-partition-size=1")
    few = ("-c", "dataset.alpha=0.001", "-c", "dataset.min-partition-size=4")
    for arguments in (("--clients", "400"), few):
        result = run(*data, *arguments)
        assert result.exit_code == 2, result.output
        assert result.output.count("dataset.min-partition-size") >= 1
    assert launched == []
    assert run(*data, "--clients", "2").exit_code == 0 and len(launched) == 1


def test_an_unknown_key_in_a_file_names_the_file(launched, tmp_path):
    (tmp_path / "x.toml").write_text("sed = 1")
    assert "x.toml: unknown key sed" in run("-c", "x.toml").output


@pytest.mark.parametrize(
    ("key", "value", "is_path"),
    [
        ("dataset.path", "data/iconqa", True),
        ("dataset.path", "derek-thomas/ScienceQA", False),
        ("dataset.path", "module:some.module/x", False),
        ("model.name", "tiny", True),
        ("model.name", "llava-hf/llava-1.5-7b-hf", False),
        ("run.dir", "out", True),
    ],
)
def test_relative_paths_are_taken_from_where_the_user_stands_and_hub_ids_are_left(
    launched, tmp_path, key, value, is_path
):
    for folder in ("tiny", "data/iconqa"):
        (tmp_path / folder).mkdir(parents=True)
    run("-c", f"{key}={value}")
    assert launched[0]["run_config"][key] == (str(tmp_path / value) if is_path else value)


def test_the_run_waits_for_all_clients_unless_told_otherwise(launched):
    run("--clients", "7")
    run("--clients", "7", "-c", "min-available-nodes=3")
    assert [call["run_config"]["min-available-nodes"] for call in launched] == [7, 3]


def test_only_lines_for_people_are_shown_and_markup_in_them_is_not_read(launched):
    assert run().output.splitlines() == ["starting Flower ...", "[b]round 1[/b]"]
    assert "INFO :      Starting Flower Simulation" in run("--verbose").output.splitlines()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("fednano | round 1", "round 1"),
        ("fednano |   indented", "  indented"),
        ("fednano | ", ""),
        ("\x1b[92mINFO \x1b[0m:      fednano | logged", "logged"),
        ("\x1b[92mINFO 2026-01-01 10:00:00,000\x1b[0m:      fednano | timed", "timed"),
        ("\x1b[36m(ClientAppActor pid=7)\x1b[0m fednano | from a client", None),
        ("INFO :      Starting", None),
    ],
)
def test_a_line_for_people_is_known_behind_what_the_logger_puts_first(line, text):
    assert screen.marked_text(line) == text


def test_a_run_that_failed_exits_with_1_and_shows_the_end_of_its_log(
    launched, monkeypatch, tmp_path
):
    log = tmp_path / "run.log"
    log.write_text("\n".join(f"line {n}" for n in range(100)))
    failed = RunStatus(1, "finished:failed", "Simulation failed", log)
    monkeypatch.setattr(cli, "launch", lambda *_: failed)
    result = run()
    assert result.exit_code == 1
    assert "finished:failed (Simulation failed)" in result.output
    assert "  line 99\n" in result.output and "  line 60\n" in result.output
    assert "line 59" not in result.output
    assert str(log) in result.output


def test_a_run_that_a_client_took_no_part_in_exits_with_3_and_says_who_and_why(
    launched, monkeypatch
):
    details = f"Simulation failed with exception: {ALL_DONE}, but client 3 took no part in any: x"
    lost = RunStatus(1, "finished:failed", details, None)
    monkeypatch.setattr(cli, "launch", lambda *_: lost)
    result = run()
    assert result.exit_code == 3
    assert result.output.splitlines()[-1].endswith("but client 3 took no part in any: x")


def test_flower_that_does_not_start_exits_with_1(launched, monkeypatch):
    monkeypatch.setattr(cli, "launch", refuse(LaunchError, "it did not start"))
    result = run()
    assert (result.exit_code, "it did not start" in result.output) == (1, True)


def test_an_interrupt_exits_with_130(launched, monkeypatch):
    monkeypatch.setattr(cli, "launch", refuse(KeyboardInterrupt))
    assert run().exit_code == 130


def test_a_run_without_a_name_is_given_its_folder_before_flower_starts(launched, tmp_path):
    for _ in range(2):
        assert run().exit_code == 0
    names = [call["run_config"]["run.name"] for call in launched]
    strategy = project.defaults(ROOT)["strategy.name"]
    assert all(name.endswith(f"-{strategy}") for name in names)
    run("-c", "run.name=mine")
    assert launched[-1]["run_config"]["run.name"] == "mine"
    assert not (tmp_path / "runs").exists()  # nothing was written, so nothing is left


def test_starting_the_command_imports_no_torch():
    code = (
        "import sys, fednano_flwr.cli.app; print({'torch', 'numpy', 'flwr'} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_version_is_shown():
    result = CliRunner().invoke(cli.cli, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("fednano ")
