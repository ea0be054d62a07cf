"""`fednano run` with Ray, killed in the middle of rounds, ends as if it had not been."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w

from fednano_flwr.runs import checkpoint as checkpoints
from tests.outcome import assert_same_outcome, half_written

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
Config = Callable[..., dict[str, Any]]
MARK = "FEDNANO_TEST_MARK"
ROUNDS = 4
WITHIN = 1200.0  # seconds; half a minute on two idle cores


class Command:
    """`fednano run` in a folder, with a temporary folder of its own."""

    def __init__(self, flat: dict[str, Any], temporary: Path) -> None:
        self.folder = Path(flat["run.dir"]) / flat["run.name"]
        self._mark = uuid.uuid4().hex
        command = [
            sys.executable,
            "-m",
            "fednano_flwr.cli",
            "run",
            "--clients",
            "2",
            "--verbose",
        ]
        config = temporary / f"{self._mark}.toml"
        config.write_text(tomli_w.dumps(flat), encoding="utf-8")
        command += ["-c", str(config)]
        self._log = temporary / f"{self._mark}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, MARK: self._mark, "TMPDIR": str(temporary)},
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> int:
        return self.process.wait(WITHIN)

    def tree(self) -> list[psutil.Process]:
        """All processes that the command has started and that are alive."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def in_round(self, number: int, seconds: float) -> None:
        """Wait until this round has begun, and so many seconds more."""
        metrics, patience = self.folder / "metrics.jsonl", time.monotonic() + WITHIN
        while time.monotonic() < patience and self.process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= number:
                time.sleep(seconds)
                return
            time.sleep(0.05)
        pytest.fail(f"round {number} did not begin:\n{self.said()[-3000:]}")

    def gone_within(self, seconds: float) -> bool:
        patience = time.monotonic() + seconds
        while self.tree():
            if time.monotonic() > patience:
                return False
            time.sleep(0.2)
        return True


def the_command(command: Command) -> None:
    """The watcher beside it ends the rest."""
    command.process.kill()


def the_server(command: Command) -> None:
    """The process of the ServerApp, which drives Ray."""
    (server,) = [p for p in command.tree() if "flwr-simulation" in " ".join(p.cmdline())]
    server.kill()


def everything(command: Command) -> None:
    """As when the machine loses power."""
    while tree := command.tree():
        for process in tree:
            with suppress(psutil.Error):
                process.kill()
        with suppress(subprocess.TimeoutExpired):
            command.process.wait(1)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path, for Ray's sockets."""
    folder = Path("/tmp") / f"fn-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    yield folder
    for process in psutil.process_iter():  # none, unless the test has failed
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_simulation_killed_in_the_middle_of_rounds_ends_as_one_that_never_was(
    run_config: Config, temporary: Path
) -> None:
    settings = {
        "num_server_rounds": ROUNDS,
        "local_epochs": 2,
        "batch_size": 1,
        "strategy__name": "fednano-ef",
        "upload__adapters": "int4",
    }
    calm = run_config(run__name="calm", **settings)
    undisturbed = Command(calm, temporary)
    assert undisturbed.end() == 0, undisturbed.said()
    flat = run_config(run__name="shaken", resume="auto", **settings)
    for number, kill in enumerate((the_command, the_server, everything), start=1):
        command = Command(flat, temporary)
        command.in_round(number, seconds=0.7)
        kill(command)
        command.end()
        assert command.gone_within(30), [process.cmdline() for process in command.tree()]
        places = checkpoints.places(command.folder / "checkpoints")
        print(f"killed: {kill.__name__} after {places[0].name}")
        assert checkpoints.read(places[0]).round == number - 1
    command = Command(flat, temporary)
    assert command.end() == 0, command.said()
    assert f"resumed  after round {number - 1}" in command.said()
    assert_same_outcome(command.folder, undisturbed.folder)
    assert half_written(command.folder, Path(flat["edge.state-dir"])) == []
