"""Runs with made-up results, as a run writes them, and plans of comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fednano_flwr.analysis.experiments.plan import CompareOptions, Plan, PlannedRun, make_plan
from fednano_flwr.analysis.facts import read_run
from fednano_flwr.config.project import default_config
from fednano_flwr.runs.results import Run
from tests.conftest import REPOSITORY

ENVIRONMENT = {"python": "3.11", "packages": {"torch": "2"}, "commit": "abc"}
NO_DATA = {"dataset.path": "/nowhere/scienceqa"}


def a_record(number: int, accuracy: float, clients: int = 3, **changes: Any) -> dict[str, Any]:
    """A round whose clients score 0.1 below, at and above the mean, again and again.

    Client k has 100 + 10 k training and 50 + 5 k test questions.
    """
    names = [str(k) for k in range(clients)]
    trained = names if number else []
    record = {
        "round": number,
        "accuracy": accuracy,
        "accuracy_per_client": {k: accuracy + 0.1 * (int(k) % 3 - 1) for k in names},
        "test_questions_per_client": {k: 50 + 5 * int(k) for k in names},
        "accuracy_by": {
            "all": {"accuracy": accuracy, "questions": 165},
            "text only": {"accuracy": min(1.0, accuracy + 0.1), "questions": 40},
        },
        "test_loss": 2.0 - accuracy,
        "test_loss_per_client": {k: 2.0 - accuracy + 0.1 * (int(k) % 3 - 1) for k in names},
        "train_loss": 2.0 / number if number else None,
        "train_loss_per_client": {k: (2.0 + 0.1 * int(k)) / number for k in trained},
        "train_questions_per_client": {k: 100 + 10 * int(k) for k in trained},
        "round_bytes_up": 200_000 if number else 1_000,
        "round_bytes_down": 300_000,
        "step_bytes_up": 7_000_000,
        "step_bytes_down": 5_000_000 if number else 40_000,
        "step_calls": 10,
        "step_retries": 0,
        "merge": {"residual base_model.model.image_adapter": 0.1} if number else {},
        "features": {"encoded": 0, "from_disk": 0},
        "seconds": 20.0,
        "client_seconds": {
            "train": [5.0] * len(trained),
            "evaluate": [1.0] * clients,
            "encoder": 2.0,
            "waiting_for_llm": 0.5 * clients,
        },
        "peak_memory_mb": {
            "client_process": 700.0 + number,
            "server_process": 600.0,
            "client_gpu": 0.0,
            "server_gpu": 0.0,
        },
        "memory_mb": {"server_process": 600.0},
        "failures": {"train": {}, "evaluate": {}},
    }
    return {**record, **changes}


def write(
    folder: Path, records: list[dict[str, Any]], environment: Any = None, **config: Any
) -> Path:
    """A run's folder; keyword arguments change the config (`__` for a dot)."""
    changes = {key.replace("__", ".").replace("_", "-"): value for key, value in config.items()}
    asked = {"num-server-rounds": len(records) - 1, **NO_DATA, **changes}
    write_parts(folder, default_config(asked).flat(), records, environment or ENVIRONMENT)
    return folder


def write_parts(folder: Path, config: Any, records: list[dict[str, Any]], environment: Any) -> None:
    folder.mkdir(parents=True)
    rounds = {"round": len(records) - 1}
    parts = {"config": config, "environment": environment, "state": rounds}
    for name, value in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)


def a_run(
    folder: Path, *accuracies: float, clients: int = 3, environment: Any = None, **config: Any
) -> Run:
    """A run with these mean accuracies, from round 0 on."""
    records = [a_record(k, accuracy, clients) for k, accuracy in enumerate(accuracies)]
    return read_run(write(folder, records, environment, **config))


def a_plan(
    folder: Path,
    names: Sequence[str],
    seeds: str = "0..2",
    vary: Sequence[str] = (),
    others: Sequence[str] = (),
) -> Plan:
    """Three clients; experiments of strategies by these names, and of others' files in `folder`."""
    for name in names:
        (folder / f"{name}.toml").write_text(f'strategy.name = "{name}"')
    files = [folder / f"{name}.toml" for name in [*names, *others]]
    asked = CompareOptions(files, seeds, vary, [], 3, None, folder / "out", "table")
    return make_plan(REPOSITORY, asked, folder)


def finish(run: PlannedRun, *accuracies: float, **environment: Any) -> Run:
    """A planned run that has ended with these mean accuracies; without any, as many as it has."""
    records = [
        a_record(k, accuracy, accuracy_by={"all": {"accuracy": accuracy + 0.05, "questions": 40}})
        for k, accuracy in enumerate(accuracies or [0.5] * (run.config.num_server_rounds + 1))
    ]
    return Run(run.folder, run.config, records, {**ENVIRONMENT, **environment})


def write_finished(run: PlannedRun) -> None:
    """Such a run's folder."""
    done = finish(run)
    write_parts(run.folder, run.config.flat(), done.rounds, done.environment)
