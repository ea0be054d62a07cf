"""`python -m benchmarks.audit`: runs' folders or config files in, one table out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.audit.results import AuditOptions, Subject, audit_one, times_sent
from benchmarks.audit.tables import console_table
from fednano_flwr.adapters.host_map import rank_of
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.base.files import replace_file
from fednano_flwr.config import ConfigError
from fednano_flwr.config.machine import environment
from fednano_flwr.config.project import find_app
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.preflight import run_config
from fednano_flwr.runs.results import load_run


def audit(
    targets: Sequence[Path],
    asked: AuditOptions,
    clients: int,
    app: Path | None,
    cwd: Path,
    command: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Audit each of some runs; all are looked at before the first is played.

    Args:
        targets: runs' folders, or .toml files of run-config keys.
        clients: of a .toml file, which has not run.
        command: what was typed; goes into the results.

    Raises:
        ConfigError, ResourceError, DataError: one cannot be audited here.
    """
    subjects = [
        from_folder(target, say) if target.is_dir() else from_file(target, clients, app, cwd)
        for target in targets
    ]
    for subject in subjects:
        times_sent(subject.config)
        if subject.config.adapter.at_llm:
            raise ConfigError(
                f"{subject.name}: adapter.sites = {subject.config.adapter.sites!r}: the audit's "
                "host has no LoRA inside the language model: audit a run whose sites have no llm"
            )
    rows = []
    for subject in subjects:
        say(f"playing  {subject.name}")
        rows.append(audit_one(subject, asked))
    return {"command": command, "seed": asked.seed, "environment": environment(), "rows": rows}


def show(results: dict[str, Any], as_json: bool, out: Path | None) -> str:
    """What to print; the results also go to the file `out`, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(results, indent=2, allow_nan=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, f"{text}\n".encode())
    return text if as_json else console_table(results["rows"])


def from_folder(folder: Path, say: Callable[[str], None] = lambda line: None) -> Subject:
    """A run that has been: its config, last adapters, accuracies and number of clients.

    Args:
        say: takes notices for people.

    Raises:
        ConfigError: the folder is no run's, or its config cannot be used.
    """
    run = load_run(folder)
    for note in run.notes:
        say(note)
    records, theta = run.rounds, run.adapters("last")
    if not records:
        raise ConfigError(f"{folder}: metrics.jsonl has no round")
    if rank_of(theta) > run.config.adapter.rank:
        raise ConfigError(
            f"{folder}: strategy {run.config.strategy.name} kept a part of the model at the host, "
            "and the audit's host has none: audit a run of another strategy"
        )
    return Subject(
        name=folder.resolve().name,
        config=replace(run.config, model=run.model()),
        theta=theta,
        clients=_clients(records[0]),
        after_round=records[-1]["round"],
        accuracy=records[-1]["accuracy"],
        frozen_accuracy=records[0]["accuracy"],
    )


def from_file(file: Path, clients: int, app: Path | None, cwd: Path) -> Subject:
    """A config that has not run: adapters as they are at the start, which change nothing.

    Raises:
        ConfigError: it cannot be used.
    """
    if file.suffix != ".toml":
        raise ConfigError(f"{file}: give a run's folder, or a file that ends in .toml")
    config = run_config(find_app(app, cwd), [str(file)], clients, cwd)
    size = (
        ModelCheckpoint(config.model.name, config.model.revision, config.model.family)
        .config.get_text_config()
        .hidden_size
    )
    theta = adapter_state(build_adapters(size, config.adapter, config.seed))
    return Subject(file.stem, config, theta, clients, 0, None, None)


def _clients(first: dict[str, Any]) -> int:
    """How many clients a run had: all score its round 0, and those that failed are named."""
    partitions = [int(partition) for partition in first["accuracy_per_client"]]
    failed = len(first["failures"]["evaluate"])
    return max(len(partitions) + failed, 1 + max(partitions, default=-1))
