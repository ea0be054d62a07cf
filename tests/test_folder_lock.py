"""One run at a time in a folder; the lock goes with its holder, however that ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fednano_flwr import client_app, server_app
from fednano_flwr.analysis.experiments.store import clear
from fednano_flwr.base import lock as folder_lock
from fednano_flwr.base.lock import LOCK, FolderLock, LockedError
from fednano_flwr.base.output import OutputError
from fednano_flwr.config import RunConfig
from tests.conftest import REPOSITORY
from tests.local_grid import LocalGrid

Config = Callable[..., dict[str, Any]]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.processes.holder", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY)


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder, and has a child."""
    process = start(folder)
    assert process.stdout is not None
    word, child = process.stdout.readline().split()
    assert word == "holding"
    try:
        yield process
    finally:
        process.communicate()
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


def test_a_second_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with held(tmp_path) as process, pytest.raises(LockedError) as caught:
        FolderLock(tmp_path, print)
    said = str(caught.value)
    assert f"{tmp_path} is being written by process {process.pid} on {socket.gethostname()}" in said
    FolderLock(tmp_path, print).release()


def test_a_killed_process_holds_nothing_and_its_file_is_in_nobodys_way(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        process.kill()
        process.wait(10)
        assert (tmp_path / LOCK).exists()
        with FolderLock(tmp_path, print):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_what_was_made_for_the_lock_alone_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    with FolderLock(folder, print):
        assert (folder / LOCK).exists()
    assert not (tmp_path / "runs").exists()
    with FolderLock(folder, print):
        (folder / "config.json").touch()
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_a_lock_on_a_file_that_was_removed_meanwhile_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def flock(number: int, how: int) -> None:
        if not taken:
            (tmp_path / LOCK).unlink()  # as the one before does between our opening and locking
        taken.append(number)
        real.flock(number, how)

    real = folder_lock.fcntl
    instead = SimpleNamespace(flock=flock, LOCK_EX=real.LOCK_EX, LOCK_NB=real.LOCK_NB)
    monkeypatch.setattr(folder_lock, "fcntl", instead)
    with FolderLock(tmp_path, print):
        monkeypatch.undo()
        assert len(taken) == 2
        with pytest.raises(LockedError):
            FolderLock(tmp_path, print)


def test_processes_that_take_turns_are_never_two_at_once(tmp_path: Path) -> None:
    crowd = [start(tmp_path / "place", 0.002, 50) for _ in range(4)]
    for process in crowd:
        process.communicate(timeout=60)
    assert [process.returncode for process in crowd] == [0] * 4
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("without", ["system", "file system"])
def test_where_there_are_no_locks_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    def flock(number: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    instead = SimpleNamespace(flock=flock, LOCK_EX=0, LOCK_NB=0)
    monkeypatch.setattr(folder_lock, "fcntl", None if without == "system" else instead)
    said: list[str] = []
    with FolderLock(tmp_path, said.append):
        pass
    (line,) = said
    assert str(tmp_path) in line and "start no second run" in line


def run(flat: dict[str, Any], run_id: int = 1) -> None:
    grid = LocalGrid(client_app.app, flat, 3, run_id=run_id)
    server_app.federate(grid, run_id, RunConfig.parse(flat))


def test_a_folder_that_another_process_writes_is_begun_resumed_and_cleared_by_nobody(
    run_config: Config,
) -> None:
    flat = run_config(local_epochs=1, num_server_rounds=1)
    folder = Path(flat["run.dir"]) / flat["run.name"]
    with held(folder):
        with pytest.raises(LockedError, match="is being written by process"):
            run(flat)
    run(flat)
    assert not (folder / LOCK).exists()
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with held(folder):
        for resume in ("auto", str(folder)):
            with pytest.raises(LockedError, match="is being written by process"):
                run({**flat, "resume": resume}, run_id=2)
        with pytest.raises(OutputError, match="is being written by process"):
            clear(SimpleNamespace(folder=folder))  # type: ignore[arg-type]
        assert {file: file.read_bytes() for file in before} == before
    run({**flat, "resume": "auto"}, run_id=2)
    clear(SimpleNamespace(folder=folder))  # type: ignore[arg-type]
    assert not folder.exists()


def test_a_run_that_fails_lets_go_of_its_folder(run_config: Config, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="there is no folder"):
        run(run_config(dataset__path=str(tmp_path / "nowhere")))
    run(run_config(num_server_rounds=0))
