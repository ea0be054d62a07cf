"""A run's folder: what was asked, what happened, and the adapters.

config.json        the run config as resolved
environment.json   versions, hardware, commit
metrics.jsonl      one object a round, from round 0 (the frozen model) on
adapters/last      adapters after the last round, in PEFT's format
adapters/best      those of the round with the best mean accuracy
state.json         which rounds these are
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from fednano_flwr.command.environment import commit_of
from fednano_flwr.command.machine import cpus
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.edge.adapters import build_adapters, load_adapter_state

PACKAGES = ("fednano-flwr", "flwr", "torch", "transformers", "peft", "ray", "grpcio", "datasets")


class RunFolder:
    """Writes one run; every file is complete at any time.

    The folder is made with round 0's results: a run that never got so far leaves none.

    Raises:
        ConfigError: the folder holds an earlier run.
    """

    def __init__(self, config: RunConfig) -> None:
        name = config.run.name or time.strftime(f"%Y%m%d-%H%M%S-{config.strategy.name}")
        self.path = (Path(config.run.dir).expanduser() / name).resolve()
        self.config = config
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(f"run.name = {name!r}: {self.path} holds an earlier run already")
        self.rounds: list[dict[str, Any]] = []
        self._environment = environment()

    @property
    def best(self) -> dict[str, Any]:
        """The record of the earliest round with the best mean accuracy.

        Only of rounds that as many clients scored as round 0: others' means are of other questions.
        """
        everyone = len(self.rounds[0]["accuracy_per_client"])
        whole = [r for r in self.rounds if len(r["accuracy_per_client"]) >= everyone]
        return max(whole, key=lambda record: (record["accuracy"] or 0.0, -record["round"]))

    def append(self, record: dict[str, Any], theta: Mapping[str, Tensor], hidden_size: int) -> None:
        """Keep a round: its adapters first, then its line of metrics."""
        if not self.rounds:
            self.path.mkdir(parents=True, exist_ok=True)
            _write_json(self.path / "config.json", self.config.flat())
            _write_json(self.path / "environment.json", self._environment)
        self.rounds.append(record)
        self._save_adapters("last", theta, hidden_size)
        if self.best is record:
            self._save_adapters("best", theta, hidden_size)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        state = {"round": record["round"], "best_round": self.best["round"]}
        _write_json(self.path / "state.json", {**state, "seed": self.config.seed})

    def _save_adapters(self, name: str, theta: Mapping[str, Tensor], hidden_size: int) -> None:
        config = self.config
        adapters = build_adapters(hidden_size, config.adapter, config.seed, config.model.name)
        load_adapter_state(adapters, theta)
        folder = self.path / "adapters" / name
        fresh, old = folder.with_name(f"{name}.new"), folder.with_name(f"{name}.old")
        shutil.rmtree(fresh, ignore_errors=True)
        adapters.save_pretrained(str(fresh))
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def environment() -> dict[str, Any]:
    """Versions, hardware and commit of this process."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "commit": commit_of(Path(__file__).parent),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write_json(path: Path, value: object) -> None:
    """Write a whole file or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
