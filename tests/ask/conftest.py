"""A run of the tiny model, its bundle, and a service in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fednano_flwr.ask.asker import Asker
from fednano_flwr.ask.opening import Service, open_asker
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle
from tests.conftest import REPOSITORY, tiny_config
from tests.export.made_up import write_run

QUESTION = "w20 w21 w22 ?"
CHOICES = ("w30", "w31", "w32")


@dataclass(frozen=True)
class Asked:
    """A run's folder, an edge bundle of its model, and a picture."""

    run: Path
    bundle: Path
    picture: Path


@pytest.fixture(scope="package")
def asked(
    tiny_model: Path,
    tiny_questions: Path,
    defaults: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Asked:
    folder = tmp_path_factory.mktemp("ask")
    run, _ = write_run(tiny_config(defaults, tiny_model, tiny_questions, folder)(), 0.5, 0.75)
    write_bundle(ModelCheckpoint(str(tiny_model)), folder / "bundle")
    pixels = np.random.default_rng(7).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return Asked(run, folder / "bundle", folder / "picture.png")


@pytest.fixture
def asker(asked: Asked) -> Iterator[Asker]:
    """The run's model in this process; its free answers are as long as they may be, 8 tokens."""
    with open_asker(asked.run) as opened:
        yield endless(opened)


def endless(asker: Asker) -> Asker:
    asker.tuned.encoder.ends, asker.max_tokens = set(), 8
    return asker


@pytest.fixture(scope="package")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`fednano serve` of the plain model."""
    with served([str(tiny_model)], tmp_path_factory.mktemp("serve") / "token") as service:
        yield service


@contextmanager
def served(arguments: Sequence[str], token: Path) -> Iterator[Service]:
    """`fednano serve` in a process of its own."""
    command = [sys.executable, "-m", "fednano_flwr.cli", "serve", *arguments]
    with subprocess.Popen(
        [*command, "--token-file", str(token)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        try:
            assert process.stdout is not None
            said = {}
            while "token" not in said:
                line = process.stdout.readline()
                assert line, said
                said[line.split()[0]] = line
            yield Service(said["listens"].split()[1], token)
        finally:
            process.terminate()
        assert process.wait(30) == 0  # to be stopped is how it ends
