"""A run of the tiny model, its bundle, and a service in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fednano_flwr.ask.opening import Service
from fednano_flwr.cli.split import split
from tests.conftest import REPOSITORY
from tests.export.made_up import write_run


@dataclass(frozen=True)
class Asked:
    """A run's folder, an edge bundle of its model, and a picture."""

    run: Path
    bundle: Path
    picture: Path


@pytest.fixture(scope="module")
def asked(
    tiny_model: Path,
    tiny_questions: Path,
    defaults: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Asked:
    folder = tmp_path_factory.mktemp("ask")
    flat = {
        **defaults,
        "model.name": str(tiny_model),
        "dataset.path": str(tiny_questions),
        "run.dir": str(folder),
        "run.name": "run",
        "adapter.rank": 4,
    }
    run, _ = write_run(flat, 0.5, 0.75)
    split(str(tiny_model), folder / "bundle", None, None)
    pixels = np.random.default_rng(7).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return Asked(run, folder / "bundle", folder / "picture.png")


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`fednano serve` in a process of its own."""
    token = tmp_path_factory.mktemp("serve") / "token"
    command = [sys.executable, "-m", "fednano_flwr.cli", "serve", str(tiny_model)]
    with subprocess.Popen(
        [*command, "--token-file", str(token)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            assert "token" in lines[2], lines
            yield Service(lines[1].split()[1], token)
        finally:
            process.terminate()
        assert process.wait(30) == 0  # to be stopped is how it ends
