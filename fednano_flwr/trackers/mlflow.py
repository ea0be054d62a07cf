"""MLflow: a run of experiment `fednano`; MLFLOW_TRACKING_URI says where."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

AT_ONCE = 1000
"""Metrics in a request, at most as many as MLflow takes."""


class MLflow:
    """Logs to a run with this run's name."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_round: int) -> None:
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fednano")
        self._run = self._client.create_run(
            self._experiment(name), run_name=folder.name
        ).info.run_id
        for key, value in config.items():
            self._client.log_param(self._run, key, value)

    def _experiment(self, name: str) -> str:
        """The experiment's id; made where there is none, by this run or by one beside it."""
        if (known := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._run, metrics[start : start + AT_ONCE])

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _allowed(name: str) -> str:
    """As MLflow takes it: letters, digits and _-. in parts that are joined by single slashes."""
    parts = ("".join(c if c.isalnum() or c in "_-. " else "_" for c in p) for p in name.split("/"))
    return "/".join(part if part.strip(".") else f"_{part}" for part in parts)
