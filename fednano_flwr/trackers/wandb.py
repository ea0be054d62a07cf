"""Weights & Biases: a run of project `fednano`; its own WANDB_* variables say where and how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb


class WandB:
    """Logs to a run with this run's name; a resumed run is another one there."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_round: int) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fednano"),
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            reinit="create_new",  # and not the run beside this one, where one is open
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, completed: bool = True) -> None:
        self._run.finish(exit_code=0 if completed else 1)
