"""Strategies that keep a part of the merged model at the host: fedex and accumulate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.host_map import by_site, joined
from fednano_flwr.adapters.product import DOWN, UP
from fednano_flwr.adapters.site import AdapterSites, adapter_state
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.ask.opening import open_asker
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.export.command import export
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.preflight import check_strategy
from fednano_flwr.rounds.federation import TooFewClientsError
from fednano_flwr.runs.checkpoint import newest
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.registry import make_strategy
from tests.local_grid import LocalGrid
from tests.strategies.factors import drawn, product

Config = Callable[..., dict[str, Any]]
NAMES = pytest.mark.parametrize("name", ["fedex", "accumulate"])


def made(defaults: dict[str, Any], name: str, seed: int = 0) -> AdapterStrategy:
    strategy = make_strategy(RunConfig.parse({**defaults, "strategy.name": name}).strategy, seed)
    assert isinstance(strategy, AdapterStrategy)
    return strategy


def merged(strategy: AdapterStrategy, sent: State, *thetas: State) -> State:
    """The adapters after a round of clients with 10, 20, … questions."""
    strategy.round, strategy.sent = strategy.round + 1, sent
    return strategy.merge([Update(k, one, None, 10 * (k + 1)) for k, one in enumerate(thetas)])


def pair(a: list[list[float]], b: list[list[float]]) -> State:
    return {f"x{DOWN}": torch.tensor(a), f"x{UP}": torch.tensor(b)}


def test_fedex_by_hand(defaults: dict[str, Any]) -> None:
    one, other = pair([[1.0, 0.0]], [[3.0], [0.0]]), pair([[0.0, 1.0]], [[0.0], [3.0]])
    strategy = made(defaults, "fedex")
    found = merged(strategy, one, one, other)  # weights 1/3 and 2/3
    assert torch.allclose(found[f"x{DOWN}"], torch.tensor([[1.0, 2.0]]) / 3)
    assert torch.allclose(found[f"x{UP}"], torch.tensor([[1.0], [2.0]]))
    # The mean product has 1 and 2 on its diagonal, that of the means is [[1, 2], [2, 4]] / 3.
    residual = torch.tensor([[2.0, -2.0], [-2.0, 2.0]], dtype=torch.float64) / 3
    assert torch.allclose(product(strategy.map), residual, atol=1e-6)
    assert strategy.notes == {"rank of map x": 1}
    alone = made(defaults, "fedex")
    merged(alone, one, one)
    assert product(alone.map).abs().max() < 1e-6  # one client's factors are their own mean


def test_accumulate_by_hand(defaults: dict[str, Any]) -> None:
    one, other = pair([[1.0, 0.0]], [[3.0], [0.0]]), pair([[0.0, 1.0]], [[0.0], [3.0]])
    strategy = made(defaults, "accumulate")
    found = merged(strategy, one, one, other)
    diagonal = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert torch.allclose(product(strategy.map), diagonal, atol=1e-6)
    assert not found[f"x{UP}"].any() and found[f"x{DOWN}"].abs().max() <= 2**-0.5
    merged(strategy, found, one, other)
    assert torch.allclose(product(strategy.map), 2 * diagonal, atol=1e-6)


def test_accumulate_draws_a_from_the_runs_seed_and_the_round(defaults: dict[str, Any]) -> None:
    one = drawn(0)
    first, again, other = (made(defaults, "accumulate", seed) for seed in (5, 5, 6))
    a = [merged(strategy, one, one)[f"x{DOWN}"] for strategy in (first, first, again, other)]
    assert torch.equal(a[0], a[2])
    assert not torch.equal(a[0], a[1]) and not torch.equal(a[0], a[3])


@NAMES
def test_the_merged_model_is_the_mean_of_the_clients_models(
    defaults: dict[str, Any], name: str
) -> None:
    strategy, sent = made(defaults, name), drawn(0)
    for number in range(1, 5):  # in the last rounds the map has all d directions
        clients = [drawn(10 * number + k) for k in range(3)]
        before = product(strategy.map) if strategy.map else 0
        mean = sum((k + 1) / 6 * (before + product(client)) for k, client in enumerate(clients))
        sent = merged(strategy, sent, *clients)
        found = product(joined(sent, strategy.map))
        assert (found - mean).abs().max() <= 1e-6 * mean.abs().max()  # type: ignore[union-attr]
    assert strategy.notes == {"rank of map x": 7}


def test_accumulate_merges_clients_of_different_ranks_and_cuts_nothing(
    defaults: dict[str, Any],
) -> None:
    strategy, clients = made(defaults, "accumulate"), [drawn(k, rank=k + 1) for k in range(3)]
    merged(strategy, clients[2], *clients)
    mean = sum((k + 1) / 6 * product(client) for k, client in enumerate(clients))
    assert torch.allclose(product(strategy.map), mean, atol=1e-5)  # type: ignore[arg-type]


def run(flat: dict[str, Any]) -> RunFolder:
    return server_app.federate(LocalGrid(client_app.app, flat, 3), 1, RunConfig.parse(flat))


@pytest.mark.parametrize(
    ("name", "labels_at", "upload"),
    [
        ("fedex", "server", "float32"),
        ("fedex", "client", "int4"),
        ("accumulate", "server", "int8"),
        ("accumulate", "client", "float32"),
    ],
)
def test_a_run_learns_and_costs_clients_no_byte_more(
    run_config: Config, name: str, labels_at: str, upload: str
) -> None:
    keys = {
        "exchange__labels_at": labels_at,
        "upload__adapters": upload,
        "upload__error_feedback": False,
        "num_server_rounds": 3,
    }
    found = run(run_config(run__name=name, strategy__name=name, **keys))
    plain = run(run_config(run__name="fedavg", strategy__name="fedavg", **keys))
    losses = [record["test_loss"] for record in found.rounds]
    assert losses[3] < losses[1] < losses[0]
    assert found.rounds[3]["merge"]["rank of map base_model.model.text_adapter"] > 4
    for record, other in zip(found.rounds, plain.rounds, strict=True):
        assert not record["failures"]["train"] and not record["failures"]["evaluate"]
        for key in ("round_bytes_up", "round_bytes_down", "step_bytes_up", "step_bytes_down"):
            # Numbers of replies, and where a checkpoint is, have digits more or less.
            assert abs(record[key] - other[key]) <= 0.001 * other[key], key


@NAMES
def test_exports_and_answers_are_those_of_the_run(
    run_config: Config, name: str, tmp_path: Path
) -> None:
    folder = run(run_config(run__name=name, strategy__name=name, learning_rate=0.02))
    checkpoint = newest(folder.path / "checkpoints", print)
    assert checkpoint is not None and checkpoint.map
    whole = {site: f.b @ f.a for site, f in by_site(checkpoint.whole).items()}
    alone = {site: f.b @ f.a for site, f in by_site(checkpoint.theta).items()}
    assert all((whole[s] - alone[s]).norm() > 0.01 * whole[s].norm() for s in whole)

    export(folder.path, "peft", "last", tmp_path / "peft", "", None)
    loaded = PeftModel.from_pretrained(AdapterSites(48, None), str(tmp_path / "peft"))
    factors = by_site(adapter_state(loaded))
    assert len(factors["text"].a) > 4
    for site, expected in whole.items():
        assert torch.allclose(factors[site].b @ factors[site].a, expected, atol=1e-6)
        layer = getattr(loaded.base_model.model, f"{site}_adapter")
        assert layer.scaling["default"] == pytest.approx(folder.config.adapter.scale)

    export(folder.path, "merged", "last", tmp_path / "merged", "", None)
    again = run(
        run_config(run__name="merged", model__name=str(tmp_path / "merged"), num_server_rounds=0)
    )
    assert again.rounds[0]["test_loss"] == pytest.approx(folder.rounds[-1]["test_loss"], rel=1e-5)
    assert again.rounds[0]["accuracy"] == folder.rounds[-1]["accuracy"]

    question, choices = "w20 w21 w22 ?", ("w30", "w31", "w32")
    with open_asker(folder.path, "last") as asked, open_asker(again.path, "last") as plain:
        found = asked.answer(question, choices=choices).probabilities
        assert found == pytest.approx(plain.answer(question, choices=choices).probabilities)
        frozen = asked.answer(question, choices=choices, frozen=True).probabilities
        assert found != pytest.approx(frozen, rel=1e-3)


def test_clients_of_different_ranks_accumulate_one_map(run_config: Config) -> None:
    ranks = run_config(strategy__name="accumulate", adapter__ranks="2,4,1", learning_rate=0.02)
    folder = run(ranks)
    assert folder.rounds[2]["train_loss"] < folder.rounds[1]["train_loss"]
    assert not any(record["failures"]["train"] for record in folder.rounds)
    kept = [
        record["merge"].get("rank of map base_model.model.text_adapter") for record in folder.rounds
    ]
    assert kept == [None, 7, 14]  # 2 + 4 + 1 a round: nothing is cut


def test_clients_that_another_host_serves_are_refused_once_there_is_a_map(
    run_config: Config, llm_half: LLMHalf
) -> None:
    with serve(FrozenLLM(llm_half)) as elsewhere:
        flat = run_config(strategy__name="fedex", llm__address=elsewhere)
        with pytest.raises(TooFewClientsError, match=r"round 1, evaluation.*\(llm\.address\)"):
            run(flat)


@NAMES
def test_what_cannot_be_is_refused_before_anything_is_loaded(run_config: Config, name: str) -> None:
    def refused(says: str, **keys: Any) -> None:
        flat = run_config(strategy__name=name, **keys)
        with pytest.raises(ConfigError, match=says):
            check_strategy(RunConfig.parse(flat))
        with pytest.raises(ConfigError, match=says):
            run(flat)

    refused(r"the host never has them; use exchange\.kind = 'lowrank'", exchange__kind="embeddings")
    refused(r"products B A", privacy__dp="server-fixed", strategy__weight_by="equal")
    if name == "accumulate":
        refused(r"use upload\.error-feedback = false", upload__adapters="int4")
