"""Trackio: a run of project `fednano`, `trackio show`; its own TRACKIO_* variables say where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import Context
from pathlib import Path
from typing import Any

import trackio


class Trackio:
    """Logs to a run with this run's name; a resumed run is another one there."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_round: int) -> None:
        project = os.environ.get("TRACKIO_PROJECT", "fednano")
        # Trackio ends the run that its context knows of, which may be another one beside this.
        self._run = Context().run(
            trackio.init, project=project, name=folder.name, config=dict(config)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, completed: bool = True) -> None:
        self._run.finish()
