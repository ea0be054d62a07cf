"""What dies in the middle of a round costs time and changes nothing.

Whole rounds through both apps, with the LLM host (and the client that dies) in processes of their
own. Each result is that of an undisturbed round with the same clients, to the last bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.config import RunConfig
from fednano_flwr.runs.folder import RunFolder
from tests.conftest import REPOSITORY, tiny_config
from tests.e2e.machines import free_ports
from tests.local_grid import LocalGrid

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
Config = Callable[..., dict[str, Any]]
VICTIM = 999


class Host:
    """A host process, and what it says."""

    def __init__(self, model: Path, port: int = 0) -> None:
        self.process = _start("host", str(model), str(port), f"1/{VICTIM}")
        self._steps: list[str] = []
        self._told = threading.Condition()

    @cached_property
    def address(self) -> str:
        """Where it listens; waits for that."""
        assert self.process.stdout is not None
        address = self.process.stdout.readline().strip()
        assert ":" in address
        threading.Thread(target=self._listen, daemon=True).start()
        return address

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def after_steps(self, count: int, owner: str = "") -> None:
        """Wait until so many steps (of this owner) have begun."""
        with self._told:
            assert self._told.wait_for(
                lambda: sum(owner in step for step in self._steps) >= count, timeout=60
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._told:
                self._steps.append(line)
                self._told.notify_all()


def _start(name: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.processes.{name}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


@contextmanager
def hosted(model: Path, port: int = 0) -> Iterator[Host]:
    host = Host(model, port)
    try:
        yield host
    finally:
        host.kill()


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something in the middle of the block; its error is the test's."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive() and not errors, errors


KEYS = {"exchange__kind": "lowrank", "batch_size": 2}


@pytest.fixture
def settings(run_config: Config) -> Config:
    return lambda **keys: run_config(**KEYS, **keys)


@pytest.fixture(scope="module")
def calm(
    defaults: dict[str, Any],
    tiny_model: Path,
    tiny_questions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunFolder:
    """An undisturbed run of all three clients."""
    own = tiny_config(defaults, tiny_model, tiny_questions, tmp_path_factory.mktemp("calm"))
    return run(own(**KEYS, run__name="calm"))


def run(flat: dict[str, Any], without: int | None = None) -> RunFolder:
    """A run of three clients, or of two of them."""
    grid = LocalGrid(client_app.app, flat, 3)
    grid.nodes = {node: part for node, part in grid.nodes.items() if part != without}
    return server_app.federate(grid, 1, RunConfig.parse(flat))


def same_adapters(one: RunFolder, other: RunFolder) -> bool:
    file = Path("adapters", "last", "adapter_model.safetensors")
    first, second = (load_file(folder.path / file) for folder in (one, other))
    return all(torch.equal(first[key], second[key]) for key in first)


def test_a_host_killed_in_the_middle_of_a_round_and_started_again_changes_nothing(
    settings: Config, tiny_model: Path, calm: RunFolder
) -> None:
    with hosted(tiny_model, *free_ports(1)) as host:

        def restart() -> None:
            host.after_steps(10)
            host.kill()
            started.append(Host(tiny_model, host.port))
            assert started[0].address == host.address

        started: list[Host] = []
        try:
            with meanwhile(restart):
                shaken = run(settings(run__name="shaken", llm__address=host.address))
        finally:
            for other in started:
                other.kill()
    assert shaken.rounds[1]["step_retries"] > 0
    assert not shaken.rounds[1]["failures"]["train"]
    assert same_adapters(shaken, calm)


def test_a_feature_store_emptied_in_the_middle_of_a_round_changes_nothing(
    settings: Config, tiny_model: Path, calm: RunFolder
) -> None:
    with hosted(tiny_model) as host:

        def empty() -> None:
            for steps in (5, 10, 15):
                host.after_steps(steps)
                os.kill(host.process.pid, signal.SIGUSR1)

        with meanwhile(empty):
            shaken = run(settings(run__name="shaken", llm__address=host.address))
    resent = shaken.rounds[1]["step_bytes_up"] - calm.rounds[1]["step_bytes_up"]
    assert resent > 9 * 48 * 4  # a picture's features at least
    assert not shaken.rounds[1]["failures"]["train"]
    assert same_adapters(shaken, calm)


def test_a_client_killed_in_the_middle_of_a_step_costs_the_others_nothing(
    settings: Config, tiny_model: Path, tmp_path: Path
) -> None:
    with hosted(tiny_model) as host:
        expected = run(settings(run__name="calm"), without=1)  # while the host starts
        flat = settings(run__name="shaken", llm__address=host.address)
        (tmp_path / "config.json").write_text(json.dumps(flat))
        client = _start("client", str(tmp_path / "config.json"), host.address, "1", str(VICTIM))

        def kill() -> None:
            host.after_steps(2, f"1/{VICTIM}")
            client.kill()
            client.wait(10)

        try:
            with meanwhile(kill):
                host.after_steps(1, f"1/{VICTIM}")
                shaken = run(flat, without=1)
        finally:
            client.kill()
    assert client.returncode == -signal.SIGKILL
    assert sorted(shaken.rounds[1]["train_loss_per_client"]) == ["0", "2"]
    assert same_adapters(shaken, expected)
