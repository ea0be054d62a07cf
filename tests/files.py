"""Small files of the project's own formats."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fednano_flwr.config.lineage import PreviousRun
from fednano_flwr.runs import checkpoint as checkpoints
from fednano_flwr.runs.checkpoint import Checkpoint, Memory

THETA = {"text.lora_A.weight": torch.ones(4, 6), "text.lora_B.weight": torch.zeros(6, 4)}


def hub_cache(
    folder: Path, hub_id: str, commits: Mapping[str, Path], kind: str = "models", **refs: str
) -> Path:
    """The hub's cache with these commits of a model, and branches or tags that name them."""
    cached = folder / f"{kind}--{hub_id.replace('/', '--')}"
    for commit, files in commits.items():
        shutil.copytree(files, cached / "snapshots" / commit)
    for name, commit in refs.items():
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / name).write_text(commit)
    return cached


def checkpoint_in(folder: Path) -> Path:
    """A run's checkpoint; returns its own folder."""
    checkpoints.write(
        folder,
        Checkpoint(
            round=3,
            theta=THETA,
            best_round=2,
            best=THETA,
            hidden_size=6,
            runs=[PreviousRun("1", 3)],
            config="digest",
            packages={},
            memory=Memory({"m_t.0": np.ones(3)}, {"m_t": {"kind": "list"}}),
        ),
        keep=1,
    )
    return folder / "round-00003"
