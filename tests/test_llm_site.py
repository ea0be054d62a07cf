"""Runs that train a LoRA inside the language model, at the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.llm_part import at_clients, at_llm
from fednano_flwr.config import RunConfig
from fednano_flwr.runs.checkpoint import newest
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.runs.results import load_run
from tests.local_grid import LocalGrid

Config = Callable[..., dict[str, Any]]
RATES = {"learning_rate": 0.01, "adapter__llm_learning_rate": 0.02, "adapter__llm_rank": 3}


def run(flat: dict[str, Any], order: int = 0) -> RunFolder:
    return server_app.federate(LocalGrid(client_app.app, flat, 3, order), 1, RunConfig.parse(flat))


@pytest.mark.parametrize(
    ("strategy", "sites", "labels_at", "kind", "upload"),
    [
        ("fedavg-exact", "all,llm", "server", "lowrank", "float32"),
        ("fednano", "all,llm", "client", "embeddings", "int8"),
        ("fednano-ef", "llm", "server", "lowrank", "float32"),
        ("rolora", "text,llm", "client", "lowrank", "int4"),
        ("fedprox", "llm", "server", "embeddings", "float32"),
        ("centralized", "image,llm", "server", "lowrank", "float32"),
        ("FedAdam", "all,llm", "server", "lowrank", "float32"),
    ],
)
def test_a_run_learns_inside_the_language_model(
    run_config: Config, strategy: str, sites: str, labels_at: str, kind: str, upload: str
) -> None:
    flat = run_config(
        strategy__name=strategy,
        adapter__sites=sites,
        exchange__labels_at=labels_at,
        exchange__kind=kind,
        upload__adapters=upload,
        num_server_rounds=3,
        **RATES,
    )
    folder = run(flat)
    losses = [record["test_loss"] for record in folder.rounds]
    assert losses[3] < losses[0] and not any(r["failures"]["train"] for r in folder.rounds)
    found = newest(folder.path / "checkpoints", print)
    assert found is not None
    inside = at_llm(found.theta)
    assert any(value.any() for name, value in inside.items() if "lora_B" in name)
    assert bool(at_clients(found.theta)) == (sites != "llm")
    again = load_run(folder.path)
    assert all(torch.equal(again.lora("last")[name], value) for name, value in inside.items())
    assert again.adapters("last").keys() == at_clients(found.theta).keys()
