"""Which folder a run gets: one that is its alone, of a name that a folder can have."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fednano_flwr import server_app
from fednano_flwr.base.lock import LOCK, FolderLock, LockedError
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.config.project import default_config
from fednano_flwr.doctor.files import check_private
from fednano_flwr.exchange.wire.auth import read_token
from fednano_flwr.preflight import config_of
from fednano_flwr.runs import resume
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.runs.resume import folder_of, run_folder_of
from tests.conftest import REPOSITORY

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def unnamed(defaults: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Of runs that all begin in one second."""
    monkeypatch.setattr(resume.time, "strftime", lambda form: "20261130-120000-fednano")
    return RunConfig.parse({**defaults, "run.dir": str(tmp_path / "runs")})


def named(config: RunConfig, name: str) -> RunConfig:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))


def test_runs_without_a_name_that_begin_in_one_second_have_a_folder_each(
    unnamed: RunConfig, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        folders = [stack.enter_context(run_folder_of(unnamed)) for _ in range(3)]
        name = "20261130-120000-fednano"
        assert [folder.name for folder in folders] == [name, f"{name}-2", f"{name}-3"]
    assert list(tmp_path.iterdir()) == []


def test_no_two_threads_are_given_the_same_folder(unnamed: RunConfig) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        folders = pool.map(lambda _: stack.enter_context(run_folder_of(unnamed)), range(40))
        assert len(set(folders)) == 40


def test_a_dead_link_in_the_place_of_a_folder_is_passed_over(
    unnamed: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    folder_of(unnamed).symlink_to(tmp_path / "nowhere")
    with run_folder_of(unnamed) as folder:
        assert folder.name.endswith("-2")


def test_two_unnamed_runs_write_at_once_and_one_that_came_to_nothing_leaves_no_folder(
    unnamed: RunConfig, tmp_path: Path
) -> None:
    first, second = RunFolder(unnamed), RunFolder(unnamed)
    assert first.path != second.path
    (second.path / "config.json").write_text("{}")
    first.close()
    second.close()
    assert list((tmp_path / "runs").iterdir()) == [second.path]


def test_a_killed_run_that_came_to_nothing_leaves_no_folder_with_a_lock(
    unnamed: RunConfig, tmp_path: Path
) -> None:
    for config in (unnamed, named(unnamed, "mine")):
        with run_folder_of(config) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).write_text("{}")  # of a ServerApp that was killed
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_or_that_another_run_writes_to_stays(
    unnamed: RunConfig, tmp_path: Path
) -> None:
    config = named(unnamed, "mine")
    mine = tmp_path / "runs" / "mine"
    mine.mkdir(parents=True)
    with run_folder_of(config):
        pass
    assert mine.is_dir()
    mine.rmdir()
    with run_folder_of(config):
        lock = FolderLock(mine, print)
    with pytest.raises(LockedError):
        FolderLock(mine, print)
    lock.release()


def test_a_folder_of_runs_that_cannot_be_made_is_named_before_anything_starts(
    unnamed: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"run\.dir"), run_folder_of(unnamed):
        pass


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "/x", "..", ".", "a\\b", "a\0b", "a\nb", "caf\udce9", " a", "a ", "é" * 128],
)
def test_a_name_that_is_not_one_folders_is_refused(defaults: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        RunConfig.parse({**defaults, "run.name": name})


@pytest.mark.parametrize("name", ["", "first", "a b", "it's", "α=0.5", "...", "-x", "é" * 127])
def test_a_name_that_a_folder_can_have_is_taken(
    defaults: dict[str, Any], tmp_path: Path, name: str
) -> None:
    config = RunConfig.parse({**defaults, "run.name": name, "run.dir": str(tmp_path)})
    folder_of(config).mkdir()
    assert folder_of(config).parent == tmp_path


@pytest.mark.parametrize("key", ["run.dir", "model.name", "dataset.path"])
def test_a_path_that_is_no_utf_8_is_refused_with_its_key(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*UTF-8"):
        config_of(REPOSITORY, [f"{key}=/data/caf\udce9"], tmp_path)
    if key == "run.dir":  # the folder that the user stands in
        with pytest.raises(ConfigError, match=f"{key}.*UTF-8"):
            config_of(REPOSITORY, [], tmp_path / "caf\udce9")


def test_a_command_names_the_key_of_such_a_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fednano_flwr.cli", "run", "-c"]
    ended = subprocess.run([*command, b"run.dir=caf\xe9"], cwd=tmp_path, capture_output=True)
    assert ended.returncode == 2
    assert b"run.dir" in ended.stderr and b"Traceback" not in ended.stderr


def test_printed_commands_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("closing_table", "kinds_table", "traffic_line"):
        monkeypatch.setattr(server_app, name, lambda *_: "")
    folder = tmp_path / "my project" / "it's"
    server_app._report(SimpleNamespace(path=folder, rounds=[{}], best={}, config=default_config()))  # type: ignore[arg-type]
    command = capsys.readouterr().out.rpartition(": ")[2]
    assert shlex.split(command) == ["fednano", "report", str(folder)]
    folder.mkdir(parents=True)
    (told,) = check_private("edge.state-dir", str(folder))
    assert shlex.split(told.do) == ["chmod", "700", str(folder)]
    token = folder / "token"
    token.write_text("x" * 32)
    with pytest.raises(ConfigError) as error:
        read_token(token)
    assert shlex.split(str(error.value).split("`")[1]) == ["chmod", "600", str(token)]
