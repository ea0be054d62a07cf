"""MLflow: a run of experiment `fednano`; MLFLOW_TRACKING_URI says where, else `mlflow.db` beside
the run's folder: `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""In a request, at most as many as MLflow takes."""


class MLflow:
    """Logs to a run with this run's name; a resumed run is another one there."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_round: int) -> None:
        # MLflow's own place would be the working directory, which is not the user's in a run.
        here = None if mlflow.is_tracking_uri_set() else f"sqlite:///{folder.parent}/mlflow.db"
        self._client = MlflowClient(tracking_uri=here)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fednano")
        self._run = self._client.create_run(
            self._experiment(name), run_name=folder.name
        ).info.run_id
        params = [Param(key, str(value)) for key, value in config.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + PARAMS_AT_ONCE])

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
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._run, metrics[start : start + METRICS_AT_ONCE])

    def close(self, completed: bool = True) -> None:
        self._client.set_terminated(self._run, "FINISHED" if completed else "FAILED")


def _allowed(name: str) -> str:
    """As MLflow takes it: letters, digits and _-. in parts that are joined by single slashes."""
    parts = ("".join(c if c.isalnum() or c in "_-. " else "_" for c in p) for p in name.split("/"))
    return "/".join(part if part.strip(".") else f"_{part}" for part in parts)
