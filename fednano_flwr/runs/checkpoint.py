"""Checkpoints, a folder for each round: all that later rounds depend on, written atomically.

round-00003/adapters.safetensors   the server's adapters after round 3
round-00003/best.safetensors       those of the best round so far, where that is another
round-00003/map.safetensors        the part of the merged model that is at the host, where one is
round-00003/strategy.safetensors   what the strategy remembers
round-00003/state.json             the rest, and the SHA-256 of the files above
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from fednano_flwr.adapters.host_map import joined
from fednano_flwr.base.files import inside, sync_folder, write_synced
from fednano_flwr.config.lineage import PreviousRun

ADAPTERS, BEST, MAP, STRATEGY, STATE = (
    "adapters.safetensors",
    "best.safetensors",
    "map.safetensors",
    "strategy.safetensors",
    "state.json",
)


class CheckpointError(RuntimeError):
    """A round cannot be written, or no checkpoint can be read; the message says what to do."""


@dataclass(frozen=True)
class Memory:
    """A strategy's state between rounds: its attributes as arrays and JSON (strategies/memory.py).

    Attributes:
        arrays: by attribute and number, as `m_t.0`.
        layout: of each attribute, how it is put together again; fits into JSON.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    layout: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes:
        round: the last finished one.
        theta: the server's adapters, in the order of the messages.
        best_round, best: the best round so far and its adapters, joined with its map.
        map: what the merged model has beside the adapters (adapters/host_map.py).
        memory: the strategy's.
        runs: the runs that led here, each with its last round that counts.
        config: digest of the run config.
        packages: versions of the packages that computed it.
    """

    round: int
    theta: dict[str, Tensor]
    best_round: int
    best: dict[str, Tensor]
    hidden_size: int
    runs: list[PreviousRun]
    config: str
    packages: dict[str, Any]
    memory: Memory = field(default_factory=Memory)
    map: dict[str, Tensor] = field(default_factory=dict)

    @property
    def whole(self) -> dict[str, Tensor]:
        """The adapters joined with the map."""
        return joined(self.theta, self.map)


def write(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint into `folder` atomically, then remove all but the last `keep`.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    place = folder / _name(checkpoint.round)
    partial = folder / f".{place.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        parts = _parts(checkpoint)
        for name, data in parts.items():
            write_synced(partial / name, data)
        write_synced(partial / STATE, _state(checkpoint, parts))
        sync_folder(partial)
        if place.exists():  # a damaged one that was passed over
            shutil.rmtree(place)
        partial.rename(place)
        sync_folder(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in places(folder)[keep:]:
        shutil.rmtree(old)


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The last valid checkpoint; None if there is none.

    Raises:
        CheckpointError: all of them are damaged.
    """
    for place in places(folder):
        try:
            return read(place)
        except CheckpointError as error:
            say(f"warning  {error}; going back to the one before")
    if places(folder):
        raise CheckpointError(f"no checkpoint in {folder} can be used; begin the run anew")
    return None


def places(folder: Path) -> list[Path]:
    """The checkpoints' folders, the newest first."""
    return sorted(folder.glob("round-*"), reverse=True)


def tidy(folder: Path, last: int, keep: int) -> None:
    """Remove the leftovers of a process that was killed while it wrote or removed a checkpoint.

    Args:
        last: round of the checkpoint to resume from. Later ones are damaged, and stay until their
            round is written again.
        keep: as for `write`.
    """
    for partial in folder.glob(".round-*.partial"):
        shutil.rmtree(partial)
    for old in [place for place in places(folder) if place.name <= _name(last)][keep:]:
        shutil.rmtree(old)


def read(place: Path) -> Checkpoint:
    """One checkpoint.

    Raises:
        CheckpointError: it is damaged or incomplete, or its adapters are not finite.
    """
    try:
        state = json.loads((place / STATE).read_text(encoding="utf-8"))
        data = {name: inside(place, name).read_bytes() for name in state["files"]}
        for name, digest in state["files"].items():
            if hashlib.sha256(data[name]).hexdigest() != digest:
                raise CheckpointError(f"the checkpoint {place} is damaged ({name} has changed)")
        theta = _ordered(safetensors.torch.load(data[ADAPTERS]), state["order"])
        map = safetensors.torch.load(data[MAP]) if MAP in data else {}
        best = joined(theta, map)
        if BEST in data:
            best = _ordered(safetensors.torch.load(data[BEST]), state["order"])
        numbers = (*theta.values(), *best.values(), *map.values())
        if not all(value.isfinite().all() for value in numbers):
            raise CheckpointError(f"the checkpoint {place} has adapters that are not finite")
        return Checkpoint(
            round=state["round"],
            theta=theta,
            best_round=state["best_round"],
            best=best,
            hidden_size=state["hidden_size"],
            runs=[PreviousRun(**run) for run in state["runs"]],
            config=state["config"],
            packages=state["packages"],
            memory=Memory(safetensors.numpy.load(data[STRATEGY]), state["strategy"]),
            map=map,
        )
    except CheckpointError:
        raise
    except Exception as error:  # there is no end to what a damaged file can be
        raise CheckpointError(
            f"the checkpoint {place} is damaged ({type(error).__name__}: {error})"
        ) from None


def _name(number: int) -> str:
    return f"round-{number:05d}"


def _parts(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files but for state.json."""
    arrays = {key: np.ascontiguousarray(one) for key, one in checkpoint.memory.arrays.items()}
    parts = {
        ADAPTERS: _saved(checkpoint.theta),
        STRATEGY: safetensors.numpy.save(arrays),
    }
    if checkpoint.best_round != checkpoint.round:
        parts[BEST] = _saved(checkpoint.best)
    if checkpoint.map:
        parts[MAP] = _saved(checkpoint.map)
    return parts


def _state(checkpoint: Checkpoint, parts: Mapping[str, bytes]) -> bytes:
    state = {
        "round": checkpoint.round,
        "best_round": checkpoint.best_round,
        "hidden_size": checkpoint.hidden_size,
        "runs": [asdict(run) for run in checkpoint.runs],
        "config": checkpoint.config,
        "packages": checkpoint.packages,
        "order": list(checkpoint.theta),
        "strategy": checkpoint.memory.layout,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
    }
    return (json.dumps(state, indent=2) + "\n").encode()


def _saved(theta: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({key: value.contiguous() for key, value in theta.items()})


def _ordered(tensors: Mapping[str, Tensor], order: list[str]) -> dict[str, Tensor]:
    """safetensors sorts; the order of the arrays in a message is part of a run."""
    return {key: tensors[key] for key in order}
