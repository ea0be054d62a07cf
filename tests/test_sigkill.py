"""Runs that SIGKILL ends at random moments, begun again each time, end as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr.runs import checkpoint as checkpoints
from tests.conftest import REPOSITORY
from tests.outcome import assert_same, assert_same_outcome, half_written

pytestmark = pytest.mark.slow
Config = Callable[..., dict[str, Any]]
ROTATION: dict[str, dict[str, Any]] = {
    "fedavg-exact": {"strategy__name": "fedavg-exact"},
    "FedAvgM": {"strategy__name": "FedAvgM", "strategy__args": "server_momentum=0.9"},
    "locft": {"strategy__name": "locft"},
    "feddpa-f-equal": {
        "strategy__name": "feddpa-f",
        "strategy__local_rank": 2,
        "strategy__weight_by": "equal",
    },
    "fednano-ef, int4": {"strategy__name": "fednano-ef", "upload__adapters": "int4"},
}
KEPT = ("locft", "feddpa-f", "fednano-ef")
"""Strategies, with the settings above, whose clients keep something from round to round."""
WRITING = (
    "checkpoints/.round-*.partial",
    "adapters/last.new",
    "checkpoints/.round-*.partial/state.json",
    "*.partial",
    "metrics.jsonl",
)
"""What appears in a run's folder at moments that a kill is aimed at, in turns."""


class Runs:
    """Starts runs in processes of their own, and kills them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0
        command = [sys.executable, "-m", "tests.processes.run"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY
        )
        assert self._read() == "ready"

    def start(self, flat: dict[str, Any]) -> int:
        """Begin or go on; the run's process."""
        self._runs += 1
        config = self._folder / f"{self._runs}.json"
        config.write_text(json.dumps(flat))
        self.log = self._folder / f"{self._runs}.log"
        assert self._process.stdin is not None
        self._process.stdin.write(f"{config} {self._runs} {self.log}\n")
        self._process.stdin.flush()
        return int(self._read())

    def end(self) -> int:
        """Exit status, or minus the signal, of the run that was started last."""
        return os.waitstatus_to_exitcode(int(self._read()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    started = Runs(tmp_path_factory.mktemp("starts"))
    yield started
    started.close()


def place(flat: dict[str, Any]) -> Path:
    return Path(flat["run.dir"]) / flat["run.name"]


def done(folder: Path) -> int:
    """Lines of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def straight(runs: Runs, flat: dict[str, Any]) -> tuple[float, float]:
    """A run that nothing disturbs; its seconds up to round 0's results, and those after."""
    begun = time.monotonic()
    runs.start(flat)
    while not done(place(flat)) and time.monotonic() - begun < 120:
        time.sleep(0.01)
    first = time.monotonic()
    assert runs.end() == 0, runs.log.read_text()
    return first - begun, time.monotonic() - first


def wait_to_kill(folder: Path, rounds: int, seconds: float, pattern: str | None) -> None:
    """Until `seconds` are over and then, where given, something of that name has (newly) appeared.

    In any case not beyond the beginning of the last round, so that there is something to kill.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until and done(folder) < rounds:
        time.sleep(0.0005)
    if pattern is None:
        return
    before, patience = done(folder), time.monotonic() + 30
    while time.monotonic() < patience and done(folder) < rounds:
        found = done(folder) > before if pattern == "metrics.jsonl" else any(folder.glob(pattern))
        if found:
            return
        time.sleep(0.0002)


def wait_for_the_last_checkpoint(folder: Path, rounds: int) -> None:
    patience = time.monotonic() + 120
    while done(folder) <= rounds and time.monotonic() < patience:
        time.sleep(0.0002)
    place = folder / "checkpoints" / f".round-{rounds:05d}.partial"
    patience = time.monotonic() + 1
    while not place.exists() and time.monotonic() < patience:
        time.sleep(0.0002)


def shaken(
    runs: Runs, flat: dict[str, Any], kills: int, seconds: tuple[float, float], seed: int
) -> list[str]:
    """Kill the run so many times, then let it end; what each kill left half-written.

    Every second kill comes at a random moment, every other then waits for something to be written,
    and the last one for the last checkpoint.

    Args:
        seconds: what an undisturbed run takes to its first results, and from there to its end.
        seed: of the moments.
    """
    to_begin, to_end = seconds
    rng = random.Random(seed)
    folder, rounds = place(flat), flat["num-server-rounds"]
    left = []
    for number in range(kills):
        last = number == kills - 1
        aim = WRITING[number // 2 % len(WRITING)] if number % 2 else None
        moment = rng.uniform(0, to_begin + 2 * to_end / kills)
        pid = runs.start(flat)
        if last:
            wait_for_the_last_checkpoint(folder, rounds)
        else:
            wait_to_kill(folder, rounds, moment, aim)
        os.kill(pid, signal.SIGKILL)
        assert runs.end() == -signal.SIGKILL, runs.log.read_text()
        found = half_written(folder, Path(flat["edge.state-dir"]))
        left += [name for name in found if name != ".lock"]
        for one in checkpoints.places(folder / "checkpoints")[: flat["run.keep-checkpoints"]]:
            checkpoints.read(one)
        when = f"after {moment:.2f} s" + (f", then at {aim}" if aim else "")
        print(
            f"kill {number + 1}, {'in the last checkpoint' if last else when}: {done(folder)} "
            f"rounds written; half-written: {', '.join(found) or 'nothing'}"
        )
    runs.start(flat)
    assert runs.end() == 0, runs.log.read_text()
    return left


def kept(flat: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """What clients kept in the last round."""
    pattern = f"*/client-*/*.{flat['num-server-rounds']}.safetensors"
    files = list(Path(flat["edge.state-dir"]).glob(pattern))
    assert len({file.parts[-3] for file in files}) <= 1  # of one start of the run
    return {str(Path(*file.parts[-2:])): load_file(file) for file in files}


def assert_nothing_had_been(flat: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    assert_same_outcome(place(flat), place(undisturbed))
    assert half_written(place(flat), Path(flat["edge.state-dir"])) == []
    found, wanted = kept(flat), kept(undisturbed)
    assert set(found) == set(wanted) and bool(wanted) == (flat["strategy.name"] in KEPT)
    for file, tensors in wanted.items():
        assert_same(found[file], tensors)
    places = checkpoints.places(place(flat) / "checkpoints")
    assert len(places) == flat["run.keep-checkpoints"]
    for one in places:
        checkpoints.read(one)


@pytest.mark.parametrize("name", ROTATION)
def test_a_run_killed_at_random_moments_ends_as_one_that_never_was(
    run_config: Config, runs: Runs, name: str
) -> None:
    settings = {"local_epochs": 1, "num_server_rounds": 8, **ROTATION[name]}
    calm = run_config(run__name="calm", **settings)
    seconds = straight(runs, calm)
    flat = run_config(run__name="shaken", resume="auto", **settings)
    seed = list(ROTATION).index(name)
    print(f"\n{name}: {sum(seconds):.1f} s undisturbed, seed {seed}")
    left = shaken(runs, flat, kills=6, seconds=seconds, seed=seed)
    assert left  # some kill has come while something was being written
    assert_nothing_had_been(flat, calm)
