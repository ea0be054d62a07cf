"""Runs that train a LoRA inside the language model, at the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.llm_part import at_clients, at_llm
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.llm.finished import FinishedSessions
from fednano_flwr.llm.sessions import MB, Sessions, session_bytes
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.lora import fresh_lora
from fednano_flwr.preflight import check_strategy, server_checks
from fednano_flwr.rounds.federation import TooFewClientsError
from fednano_flwr.rounds.service import lora_plan
from fednano_flwr.runs.checkpoint import newest
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.runs.results import load_run
from fednano_flwr.strategies.base import local_work_of
from fednano_flwr.strategies.registry import make_strategy
from tests.local_grid import LocalGrid
from tests.outcome import adapters, assert_same

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


@pytest.mark.parametrize("labels_at", ["server", "client"])
def test_the_merged_lora_is_the_mean_of_the_clients_trained_ones(
    run_config: Config, labels_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of which is that of the whole model (tests/models/test_llm_lora.py)."""
    trained: dict[bytes, dict[str, torch.Tensor]] = {}
    real = FinishedSessions.result

    def note(self: FinishedSessions, owner: bytes, session: int) -> Any:
        found = real(self, owner, session)
        trained[owner] = {name: value.double() for name, value in found.theta.items()}
        return found

    monkeypatch.setattr(FinishedSessions, "result", note)
    flat = run_config(
        strategy__name="fedavg",
        strategy__weight_by="equal",
        adapter__sites="all,llm",
        exchange__labels_at=labels_at,
        num_server_rounds=1,
        **RATES,
    )
    merged = load_run(run(flat).path).lora("last")
    each = list(trained.values())
    assert len(each) == 3 and any(not torch.equal(each[0][n], each[1][n]) for n in each[0])
    assert merged.keys() == each[0].keys()
    for name, value in merged.items():
        mean = sum((one[name] for one in each[1:]), each[0][name]) / 3
        assert (value - mean).abs().max() <= 1e-6 * mean.abs().max()


def test_a_session_that_is_lost_is_trained_anew_to_the_same_bits(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a step, at the end of a session, and at its second half where the labels stay."""
    flat = run_config(adapter__sites="text,llm", exchange__labels_at="client", **RATES)
    expected = run({**flat, "run.name": "undisturbed"})
    real, calls = Sessions.turn, []

    def losing(sessions: Sessions, owner: bytes, turn: Any) -> Any:
        calls.append(turn.number)
        if len(calls) in (2, 9, 16):
            sessions.clear()
        return real(sessions, owner, turn)

    monkeypatch.setattr(Sessions, "turn", losing)
    found = run(flat)
    assert len(calls) > 16
    assert not any(record["failures"]["train"] for record in found.rounds)
    assert_same(adapters(found.path), adapters(expected.path))
    assert [r["accuracy"] for r in found.rounds] == [r["accuracy"] for r in expected.rounds]


def test_a_client_whose_session_is_lost_each_time_fails_alone_and_says_why(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, first = Sessions.turn, []

    def losing(sessions: Sessions, owner: bytes, turn: Any) -> Any:
        first.append(owner)
        if owner == first[0] and turn.number == 2:
            sessions.clear()
        return real(sessions, owner, turn)

    monkeypatch.setattr(Sessions, "turn", losing)
    folder = run(run_config(adapter__sites="llm", num_server_rounds=1, **RATES))
    (reason,) = folder.rounds[1]["failures"]["train"].values()
    assert "lost this client's session 4 times" in reason


def test_a_reply_that_names_another_session_is_refused(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FinishedSessions.result
    monkeypatch.setattr(FinishedSessions, "result", lambda *a: real(a[0], a[1], a[2] + 1))
    flat = run_config(adapter__sites="llm", num_server_rounds=1, **RATES)
    with pytest.raises(TooFewClientsError, match=r"no session \d+ of this client has ended"):
        run(flat)


def test_no_session_and_no_result_outlives_its_round(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[FinishedSessions] = []
    real = FinishedSessions.forget_sessions

    def forget(finished: FinishedSessions) -> None:
        assert len(finished._latest) == 3
        real(finished)
        seen.append(finished)

    monkeypatch.setattr(FinishedSessions, "forget_sessions", forget)
    run(run_config(adapter__sites="all,llm", **RATES))
    assert len(seen) == 2 and not any(finished._latest for finished in seen)


def test_replies_in_any_order_give_the_same_bits(run_config: Config) -> None:
    one, other = (
        run(run_config(run__name=f"order{order}", adapter__sites="all,llm", **RATES), order)
        for order in (1, 2)
    )
    assert_same(adapters(one.path), adapters(other.path))


def test_noise_for_privacy_is_added_to_all_sites(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise and with a wide bound a run is as without privacy; a narrow one binds all."""
    keys = {"strategy__name": "fedavg", "strategy__weight_by": "equal", "num_server_rounds": 1}
    keys |= {"adapter__sites": "all,llm", **RATES}
    norms = {}
    for name, bound in (("plain", 0.0), ("wide", 1e6), ("narrow", 0.01)):
        own = {"privacy__dp": "server-fixed", "privacy__clip_norm": bound} if bound else {}
        noise = {"privacy__noise_multiplier": 1e-12} if bound else {}
        folder = run(run_config(run__name=name, **keys, **own, **noise))
        norms[name] = adapters(folder.path)
    first = adapters(run(run_config(run__name="frozen", **{**keys, "num_server_rounds": 0})).path)
    for key, value in norms["plain"].items():
        assert torch.allclose(norms["wide"][key], value, atol=1e-5), key
    change = sum((norms["narrow"][k] - v).square().sum() for k, v in first.items()) ** 0.5
    assert 0 < change <= 0.0101
    assert any(not torch.equal(norms["narrow"][k], v) for k, v in first.items() if "layers" in k)


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        ("keep adapters of their own", {"strategy__name": "locft"}),
        ("keep adapters of their own", {"strategy__name": "feddpa-f"}),
        ("its map is applied before", {"strategy__name": "fedex"}),
        ("its map is applied before", {"strategy__name": "accumulate"}),
        (
            'use "pass"',
            {"strategy__name": "fednano", "strategy__fisher_estimate": "pass-model"},
        ),
        (
            "use 'server-fixed'",
            {
                "strategy__name": "fedavg",
                "strategy__weight_by": "equal",
                "privacy__dp": "client-fixed",
            },
        ),
    ],
)
def test_what_cannot_go_with_it_is_refused_before_anything_is_loaded(
    run_config: Config, message: str, keys: dict[str, str]
) -> None:
    config = RunConfig.parse(run_config(adapter__sites="all,llm", **keys))
    with pytest.raises(ConfigError, match=message) as refused:
        check_strategy(config)
    assert "adapter.sites = 'all,llm'" in str(refused.value)


def test_targets_that_the_model_lacks_are_refused_before_it_is_loaded(run_config: Config) -> None:
    config = RunConfig.parse(run_config(adapter__sites="llm", adapter__llm_targets="c_attn"))
    (check,) = [one for one in server_checks(config) if one.subject == "adapter.sites"]
    with pytest.raises(ConfigError, match=r"adapter\.llm-targets = 'c_attn'"):
        check.find()


def test_a_lora_without_room_for_one_client_is_refused_before_anything_is_loaded(
    run_config: Config, tiny_model: Path
) -> None:
    """In RoLoRA's second round, which trains the larger factor."""
    keys = {"strategy__name": "rolora", "adapter__sites": "llm", "adapter__llm_rank": 400}
    keys |= {"adapter__llm_targets": "down_proj", "llm__session_memory_mb": 1}
    config = RunConfig.parse(run_config(**keys))
    lora = fresh_lora(ModelCheckpoint(str(tiny_model)), config.adapter, 0)
    works = [local_work_of(make_strategy(config.strategy), number) for number in (1, 2)]
    first, second = (session_bytes(lora, lora_plan(config, 1, work)) for work in works)
    assert first < MB < second
    (check,) = [one for one in server_checks(config) if one.subject == "adapter.sites"]
    with pytest.raises(ConfigError, match=r"llm\.session-memory-mb = 1: .* takes 2 MB"):
        check.find()


def test_room_for_fewer_sessions_than_clients_is_said_before_the_first_round(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"adapter__sites": "llm", "adapter__llm_rank": 40, "num_server_rounds": 0}
    for name, memory, centralized in (("few", 1, False), ("one", 1, True), ("many", 2, False)):
        strategy = "centralized" if centralized else "fedavg"
        own = {"llm__session_memory_mb": memory, "strategy__name": strategy}
        run(run_config(run__name=name, min_available_nodes=3, **keys, **own))
        warning = "room for 2 sessions; where more of the 3 clients train at once"
        assert (warning in capsys.readouterr().out) == (name == "few")


@pytest.mark.parametrize("sites", ["", "llm,llm", "all,text", "lora", "llm,image,image"])
def test_sites_that_are_none_are_refused(run_config: Config, sites: str) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.sites"):
        RunConfig.parse(run_config(adapter__sites=sites))
