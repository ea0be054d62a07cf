"""MLflow: a run of experiment `fednano`; MLFLOW_TRACKING_URI says where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient


class MLflow:
    """Logs to a run with this run's name."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_round: int) -> None:
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fednano")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for key, value in config.items():
            self._client.log_param(self._run, key, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, _allowed(name), value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _allowed(name: str) -> str:
    """Names may have letters, digits, and _-. /"""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
