"""Whole runs with packed uploads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, Message
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import Adapter, RunConfig
from fednano_flwr.edge.local_state import LocalState
from fednano_flwr.rounds.records import RESIDUAL
from fednano_flwr.runs.folder import RunFolder
from tests.local_grid import LocalGrid

Config = Callable[..., dict[str, Any]]
PACKED = {"upload__adapters": "int4", "upload__fisher": "log4"}
SMALL = {"strategy__name": "fednano-ef", "adapter__rank": 16, "local_epochs": 1}
THETA = "packed.theta.int4"


def run(flat: dict[str, Any], grid: type[LocalGrid] = LocalGrid, clients: int = 3) -> RunFolder:
    return server_app.federate(grid(client_app.app, flat, clients), 1, RunConfig.parse(flat))


def adapters(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")


def test_a_packed_run_ends_near_the_plain_one_for_a_quarter_of_the_bytes(
    run_config: Config,
) -> None:
    plain = run(run_config(run__name="plain", num_server_rounds=1, **SMALL))
    flat = run_config(run__name="packed", num_server_rounds=1, **SMALL, **PACKED)
    packed = run(flat)
    assert not packed.rounds[1]["failures"]["train"]
    assert 4 * packed.rounds[1]["round_bytes_up"] < plain.rounds[1]["round_bytes_up"]
    start = adapter_state(build_adapters(48, Adapter(16, 32.0, 0.0, "image,text"), seed=0))
    ends = [adapters(folder) for folder in (plain, packed)]
    for name, value in start.items():
        moved, other = (end[name] - value for end in ends)
        assert (other - moved).norm() < 0.15 * moved.norm(), name
    for client in range(3):
        kept = LocalState(Path(flat["edge.state-dir"]) / "1" / f"client-{client}", 2).load(RESIDUAL)
        assert kept is not None and set(kept) == set(start)


class Tampering(LocalGrid):
    """Client 1's scales arrive as NaN."""

    def answer(self, message: Message) -> list[Message]:
        replies = super().answer(message)
        arrays = replies[0].content.array_records.get("arrays", {})
        if THETA in arrays and self.nodes[message.metadata.dst_node_id] == 1:
            data = arrays[THETA].numpy().copy()
            data[-2:] = 0xFF
            arrays[THETA] = Array(data)
        return replies


def test_a_tampered_reply_is_refused_by_name_and_the_round_goes_on(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(run_config(num_server_rounds=1, **SMALL, **PACKED), Tampering)
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "2"]
    assert "has a scale that is not finite" in folder.rounds[1]["failures"]["train"]["client 1"]
    assert "client 1 failed: reply refused: a packed adapter" in capsys.readouterr().out


def test_flowers_own_strategies_see_plain_arrays(run_config: Config) -> None:
    settings = {**SMALL, **PACKED, "strategy__name": "FedMedian", "num_server_rounds": 1}
    folder = run(run_config(**settings))
    assert not folder.rounds[1]["failures"]["train"]
    assert adapters(folder)["base_model.model.text_adapter.lora_B.weight"].abs().max() > 0


def test_a_client_that_is_not_sampled_keeps_its_residual(
    run_config: Config, tmp_path: Path
) -> None:
    settings = {**SMALL, **PACKED, "fraction_train": 0.34, "seed": 1}
    kept = []
    for rounds in (1, 2):
        state = tmp_path / f"state-{rounds}"
        names = {"run__name": str(rounds), "edge__state_dir": str(state)}
        folder = run(run_config(num_server_rounds=rounds, **names, **settings))
        kept.append([LocalState(state / "1" / f"client-{client}", 9) for client in range(3)])
    first, second = (int(*record["train_loss_per_client"]) for record in folder.rounds[1:])
    assert first != second, "the seed has to sample two clients in turn"
    before, after = (states[first].load(RESIDUAL) for states in kept)
    assert before and after and all(torch.equal(before[k], after[k]) for k in before)
    assert kept[1][second].load(RESIDUAL) and not kept[0][second].load(RESIDUAL)
