"""The command as a user starts it, on a toy app, with a real SuperLink and Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tomli_w

from tests.signals import INTERRUPTIBLE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# The command, without the check of names: the toy app trains nothing.
COMMAND = (
    f"{INTERRUPTIBLE}from fednano_flwr.cli import app as cli; cli.validate = lambda config: None; "
    "cli.read_questions = lambda *_: None; cli.main()"
)
LONGEST = 240.0  # seconds that a command may take; 20 on two idle cores
LOGS = ["run-config.toml", "run.log", "superlink.log"]
SERVER = """
import time, toyapp
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    while len(ids := list(grid.get_node_ids())) < config["min-available-nodes"]:
        time.sleep(0.1)
    record = RecordDict({"config": ConfigRecord({"seed": config["seed"]})})
    replies = grid.send_and_receive([Message(record, i, MessageType.TRAIN) for i in ids])
    for reply in replies:
        print("fednano | [bold]reply", reply.content["config"]["seed"], flush=True)
        print("not for people", reply.content["config"]["file"] == toyapp.__file__, flush=True)
    print("fednano | runs go to", config["run.dir"], flush=True)
    if config["run.name"] == "raise":
        raise RuntimeError("the toy is broken")
    time.sleep(120 if config["run.name"] == "sleep" else 0)
"""
CLIENT = """
import toyapp
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    seed = message.content["config"]["seed"]
    record = ConfigRecord({"seed": seed, "file": toyapp.__file__})
    return Message(RecordDict({"config": record}), reply_to=message)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A toy app with FedNano's own run config."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    config = project["tool"]["flwr"]["app"]["config"]
    components = {"serverapp": "toyapp.server:app", "clientapp": "toyapp.client:app"}
    folder = tmp_path / "app"
    (folder / "toyapp").mkdir(parents=True)
    (folder / "toyapp" / "__init__.py").touch()
    (folder / "toyapp" / "server.py").write_text(SERVER)
    (folder / "toyapp" / "client.py").write_text(CLIENT)
    toy = {
        "project": {"name": "toyapp", "version": "0.1.0", "dependencies": ["flwr>=1.42"]},
        "tool": {"flwr": {"app": {"publisher": "toy", "components": components, "config": config}}},
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(toy))
    return folder


@dataclass
class Started:
    process: subprocess.Popen[str]
    mark: str
    temporary: Path

    def lines_until(self, text: str) -> list[str]:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip("\n"))
            if text in line:
                break
        return lines

    def left(self) -> list[str]:
        """Command lines of processes that inherited this test's variable."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FEDNANO_TEST") == self.mark:
                    found.append(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        return found

    def kept_files(self) -> list[str]:
        return sorted(str(f.relative_to(self.temporary)) for f in self.temporary.glob("*/*"))


@pytest.fixture
def start(app: Path, tmp_path: Path) -> Iterator:
    """Start the command in a folder whose own `toyapp` must not be imported."""
    decoy = tmp_path / "cwd" / "toyapp"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise ImportError('the wrong toyapp')")
    temporary = Path("/tmp") / f"fn-{uuid.uuid4().hex[:6]}"  # short, for Ray's sockets
    temporary.mkdir()
    everything: list[Started] = []

    def start(*arguments: str) -> Started:
        mark = uuid.uuid4().hex
        environment = os.environ | {
            "FEDNANO_TEST": mark,
            "TMPDIR": str(temporary),
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",  # no environment is activated
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "run", "--app", str(app), "--clients", "2", *arguments],
            cwd=decoy.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        everything.append(Started(process, mark, temporary))
        return everything[-1]

    yield start
    for started in everything:
        if started.process.poll() is None:
            started.process.kill()
            started.process.communicate()
    shutil.rmtree(temporary)


def test_a_run_that_completes_exits_with_0_and_shows_only_lines_for_people(start, tmp_path):
    run = start("-c", "seed=7")
    output, errors = run.process.communicate(timeout=LONGEST)
    assert run.process.returncode == 0, errors
    assert output.splitlines() == [
        "starting Flower ...",
        "[bold]reply 7",
        "[bold]reply 7",
        f"runs go to {tmp_path / 'cwd' / 'runs'}",
    ]
    assert run.left() == []
    assert run.kept_files() == []


def test_a_server_app_that_raises_exits_with_1_and_shows_the_end_of_the_log(start):
    run = start("-c", "run.name=raise", "--verbose")
    output, errors = run.process.communicate(timeout=LONGEST)
    assert run.process.returncode == 1
    assert "RuntimeError: the toy is broken" in errors
    assert "finished:failed" in errors
    assert output.count("not for people True") == 2, "the clients imported another package"
    assert run.left() == []
    kept = run.kept_files()
    assert [Path(file).name for file in kept] == LOGS
    assert str(run.temporary / kept[1]) in errors


def test_an_interrupt_exits_with_130_and_leaves_nothing(start):
    run = start("-c", "run.name=sleep")
    assert "runs go to" in run.lines_until("runs go to")[-1]
    assert len(run.left()) > 5
    run.process.send_signal(signal.SIGINT)
    _, errors = run.process.communicate(timeout=90)
    assert run.process.returncode == 130
    assert "interrupted" in errors
    assert run.left() == []
    assert run.kept_files() == []


def test_even_when_the_command_is_killed_nothing_keeps_running(start):
    run = start("-c", "run.name=sleep")
    run.lines_until("runs go to")
    run.process.kill()
    run.process.communicate(timeout=10)
    until = time.monotonic() + 60
    while run.left() and time.monotonic() < until:
        time.sleep(0.2)
    assert run.left() == []
    assert [Path(file).name for file in run.kept_files()] == LOGS
