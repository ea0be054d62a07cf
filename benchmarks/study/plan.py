"""A cell of a study as a run of `fednano compare`, and what decides the run's result."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from fednano_flwr.analysis.experiments.plan import CompareOptions, PlannedRun, make_plan
from fednano_flwr.base.files import write_once
from fednano_flwr.config import RunConfig
from fednano_flwr.models.checkpoint import ModelCheckpoint

ROOT = Path(__file__).parents[2]
PROMPT = ("tokenizer.json", "chat_template.jinja")
"""Of a model's folder, what decides a prompt's tokens."""
PIXELS = ("processor_config.json",)
"""What decides a picture's pixels."""

K = TypeVar("K")
C = TypeVar("C")


def planned_run(
    name: str, file: Path, changes: Sequence[str], seed: int, clients: int, out: Path
) -> PlannedRun:
    """A run whose folder in `out`/runs begins with the experiment's name.

    Args:
        file: the experiment's .toml.
        changes: files and `KEY=VALUE`, the last one winning.

    Raises:
        ConfigError: the config cannot be used.
    """
    options = CompareOptions([file], str(seed), [], changes, clients, None, out, "study")
    (run,) = make_plan(ROOT, options, ROOT).runs
    own = f"{name}-{run.config.run.name}"  # others may have the same config
    place = dataclasses.replace(run.config.run, name=own)
    config = dataclasses.replace(run.config, run=place)
    return dataclasses.replace(run, experiment=name, config=config)


def data_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """A folder of questions, written where it is not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_once(folder, write)
    return folder


def placeless(config: RunConfig) -> RunConfig:
    """The config without where model and questions lie on this machine."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=""),
        dataset=dataclasses.replace(config.dataset, path=""),
    )


def digest_of_parts(*parts: str) -> str:
    """Of what decides a result, such as the digests of config, questions and model."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


@cache
def folder_digest(folder: Path) -> str:
    """Of the names and contents of all files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def model_digest(folder: Path, pictures: bool = True) -> str:
    """Of what a study uses of a model: language model and prompt, or all where it has pictures."""
    fingerprint = ModelCheckpoint(str(folder)).fingerprint
    used = fingerprint if pictures else fingerprint.rpartition("-")[2]
    names = (*PROMPT, *PIXELS) if pictures else PROMPT
    files = [(folder / name).read_bytes() for name in names]
    return f"{used} {hashlib.sha256(b''.join(files)).hexdigest()}"


def least(candidates: Mapping[K, Sequence[C]], found: Mapping[C, float]) -> K | None:
    """The candidate whose cells have the least mean; None until every cell of all has been run."""
    if not candidates or any(cell not in found for cells in candidates.values() for cell in cells):
        return None
    return min(
        candidates, key=lambda one: statistics.fmean(found[cell] for cell in candidates[one])
    )
