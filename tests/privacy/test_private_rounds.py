"""Whole runs with differential privacy, of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.config import Adapter, RunConfig
from fednano_flwr.edge.adapters import adapter_state, build_adapters
from fednano_flwr.privacy.budget import epsilon_of
from fednano_flwr.run_folder import RunFolder
from tests.local_grid import LocalGrid

pytest.importorskip("dp_accounting")
Config = Callable[..., dict[str, Any]]
FAIR = {"strategy__name": "fedavg", "strategy__weight_by": "equal", "local_epochs": 1}
KINDS = (
    "client-fixed",
    "server-adaptive",
    pytest.param("client-adaptive", marks=pytest.mark.slow),
    pytest.param("server-fixed", marks=pytest.mark.slow),
)


class Watching(LocalGrid):
    """Keeps the norm of each update as it arrives, all tensors together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norms: list[float] = []

    def answer(self, message: Message) -> list[Message]:
        replies = super().answer(message)
        for reply in replies:
            if not reply.has_error() and (got := reply.content.array_records):
                sent = message.content.array_records["arrays"]
                off = [got["arrays"][k].numpy() - sent[k].numpy() for k in sent]
                self.norms.append(float(np.sqrt(sum((one**2).sum() for one in off))))
        return replies


def run(flat: dict[str, Any], **grid: Any) -> tuple[RunFolder, Watching]:
    watching = Watching(client_app.app, flat, 3, **grid)
    return server_app.federate(watching, 1, RunConfig.parse(flat)), watching


@pytest.mark.parametrize("dp", KINDS)
def test_a_run_clips_noises_and_says_what_it_has_spent(
    run_config: Config, dp: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"privacy__clip_norm": 0.05, "privacy__noise_multiplier": 1.5, **FAIR}
    folder, grid = run(run_config(privacy__dp=dp, **settings))
    spent = [record["merge"].get("epsilon") for record in folder.rounds]
    assert spent[0] is None
    assert spent[1:] == [epsilon_of(rounds, 1.5, 1e-5) for rounds in (1, 2)]
    lines = (folder.path / "privacy.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    said = capsys.readouterr().out
    assert f"ε {spent[1]:.2f}" in said and f"2 round(s) spend ε = {spent[2]:.2f}" in said
    at_client = max(grid.norms[:3]) <= 0.05 * (1 + 1e-4)  # of the first round; float32 rounds
    assert at_client == dp.startswith("client"), grid.norms
    assert folder.rounds[1]["failures"] == {"train": {}, "evaluate": {}}


@pytest.mark.slow
def test_noise_is_in_the_adapters_that_are_kept(run_config: Config) -> None:
    loud = {"privacy__clip_norm": 1e-3, "privacy__noise_multiplier": 3e4, "num_server_rounds": 1}
    flat = run_config(privacy__dp="server-fixed", **loud, **FAIR)
    folder, _ = run(flat)
    kept = load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")
    shape = Adapter(flat["adapter.rank"], flat["adapter.alpha"], 0.0, flat["adapter.sites"])
    start = adapter_state(build_adapters(48, shape, flat["seed"]))
    noise = torch.cat([(kept[name] - value).flatten() for name, value in start.items()])
    assert float(noise.std()) == pytest.approx(3e4 * 1e-3 / 3, rel=0.15)


@pytest.mark.slow
def test_the_noise_is_scaled_by_those_who_replied(run_config: Config) -> None:
    short = {"num_server_rounds": 1, "round_timeout": 1.0}
    folder, _ = run(run_config(privacy__dp="server-fixed", **short, **FAIR), gone=[1])
    assert folder.rounds[1]["merge"]["clients"] == 2
    assert folder.rounds[1]["merge"]["noise stddev"] == 0.5


@pytest.mark.slow
def test_a_resumed_run_goes_on_counting_and_counts_the_round_that_was_lost(
    run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"privacy__dp": "server-adaptive", "resume": "auto", "run__name": "r", **FAIR}
    flat = run_config(**settings)
    append = RunFolder.append

    def full(self: RunFolder, record: dict[str, Any], *rest: Any) -> None:
        if record["round"] == 2:
            raise OSError("the disk is full")
        append(self, record, *rest)

    monkeypatch.setattr(RunFolder, "append", full)
    with pytest.raises(OSError, match="full"):
        run(flat)
    monkeypatch.undo()
    folder, _ = run(flat)
    assert [record["round"] for record in folder.rounds] == [0, 1, 2]
    assert folder.rounds[2]["merge"]["epsilon"] == epsilon_of(3, 1.0, 1e-5)
    first, lost, again = map(json.loads, (folder.path / "privacy.jsonl").read_text().splitlines())
    assert (first["round"], lost["round"], again["round"]) == (1, 2, 2)
    assert again["clip norm"] == lost["clip norm"] != first["clip norm"]


@pytest.mark.slow
def test_a_client_that_trains_nothing_is_no_failure(run_config: Config) -> None:
    still = {"learning_rate_schedule": "linear", "learning_rate_end": 0.0, **FAIR}
    folder, grid = run(run_config(privacy__dp="client-adaptive", **still))
    assert grid.norms[-3:] == [0.0, 0.0, 0.0]
    assert not folder.rounds[2]["failures"]["train"]
