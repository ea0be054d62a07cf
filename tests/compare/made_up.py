"""Finished runs with made-up results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fednano_flwr.analysis.experiments.plan import Asked, Plan, Run, make_plan
from fednano_flwr.analysis.experiments.store import Finished
from tests.conftest import REPOSITORY


def a_plan(
    folder: Path,
    names: Sequence[str],
    seeds: str = "0..2",
    vary: Sequence[str] = (),
    others: Sequence[str] = (),
) -> Plan:
    """Experiments of strategies by these names, in `folder`, and of others' files there."""
    for name in names:
        (folder / f"{name}.toml").write_text(f'strategy.name = "{name}"')
    files = [folder / f"{name}.toml" for name in [*names, *others]]
    asked = Asked(files, seeds, vary, [], 2, None, folder / "out", "table")
    return make_plan(REPOSITORY, asked, folder)


def a_run(run: Run, *rounds: float, **environment: Any) -> Finished:
    """A run with these mean accuracies; its clients lie 0.1 below and above."""
    records = [
        {
            "round": number,
            "accuracy": accuracy,
            "accuracy_per_client": {"0": accuracy - 0.1, "1": accuracy + 0.1, "2": None},
            "accuracy_by": {"all": {"accuracy": accuracy + 0.05, "questions": 40}},
            "round_bytes_up": 300_000 if number else 1,
            "step_bytes_up": 2_000_000 if number else 1,
            "step_bytes_down": 1_000_000 if number else 1,
            "seconds": 4.0 if number else 100.0,
        }
        for number, accuracy in enumerate(rounds)
    ]
    return Finished(run, records, {"commit": "abc", "packages": {"torch": "2"}, **environment})


def write_run(run: Run) -> None:
    """A finished run's folder, with such records."""
    rounds = run.config.num_server_rounds
    made_up = a_run(run, *[0.5] * (rounds + 1))
    run.folder.mkdir(parents=True)
    (run.folder / "environment.json").write_text(json.dumps(made_up.environment))
    (run.folder / "state.json").write_text(json.dumps({"round": rounds}))
    text = "".join(json.dumps(record) + "\n" for record in made_up.records)
    (run.folder / "metrics.jsonl").write_text(text)
