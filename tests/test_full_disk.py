"""A disk that is really full: the run's folder lies on a small file system that a test fills."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.config import RunConfig
from fednano_flwr.runs.checkpoint import CheckpointError
from fednano_flwr.runs.folder import RunFolder
from tests.local_grid import LocalGrid

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "fednano-test", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"a file system of its own cannot be mounted here: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=10)


def fill(place: Path, leave: int) -> Path:
    """Take up all room on a file system but these bytes."""
    filler = place / "filler"
    there = os.statvfs(place)
    filler.write_bytes(b"\0" * max(0, there.f_bavail * there.f_frsize - leave))
    return filler


def run(flat: dict[str, Any]) -> RunFolder:
    return server_app.federate(LocalGrid(client_app.app, flat, 2), 1, RunConfig.parse(flat))


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(4096, marks=pytest.mark.slow),
        8192,
        pytest.param(12288, marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_is_full_ends_the_run_which_goes_on_once_there_is_room(
    run_config: Config, small_disk: Path, leave: int
) -> None:
    flat = run_config(run__dir=str(small_disk), resume="auto", local_epochs=1)
    fillers: list[Path] = []
    healthy = RunFolder.append

    def append(self: RunFolder, record: dict[str, Any], *rest: Any) -> None:
        if record["round"] == 1:
            fillers.append(fill(small_disk, leave))
        healthy(self, record, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", append)
        with pytest.raises(CheckpointError, match=r"round 1 could not .*(No space|os error 28)"):
            run(flat)
    fillers[0].unlink()
    folder = run(flat)
    assert folder.resumed is not None and folder.resumed.round == 0
    straight = run(run_config(run__name="straight", local_epochs=1))
    file = Path("adapters", "last", "adapter_model.safetensors")
    found, expected = load_file(folder.path / file), load_file(straight.path / file)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
