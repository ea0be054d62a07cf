"""Whole runs in which every client has adapters of its own rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fednano_flwr.adapters.product import adapters_of
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.rounds.federation import TooFewClientsError
from fednano_flwr.rounds.records import from_arrays, to_arrays
from fednano_flwr.rounds.replies import receive_update
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.strategies.fedavg_exact import FedAvgExact
from tests.replies import train_reply
from tests.test_rounds import adapters, run

Config = Callable[..., dict[str, Any]]
WIDTH, SITES, FLOAT = 48, 2, 4
RANKS = {"strategy__name": "fedavg-exact", "adapter__ranks": "2,4,1"}


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    """The ranks that the server merged, by client: one dictionary a round."""
    seen: list[dict[int, int]] = []
    merge = FedAvgExact.merge

    def spy(self: FedAvgExact, updates: Any) -> Any:
        seen.append({u.partition: _rank(u.theta) for u in updates})
        return merge(self, updates)

    monkeypatch.setattr(FedAvgExact, "merge", spy)
    return seen


def _rank(theta: dict[str, Tensor]) -> int:
    ranks = {value.shape["lora_B" in name] for name, value in theta.items()}
    assert len(ranks) == 1
    return ranks.pop()


def losses(folder: RunFolder) -> list[float]:
    return [record["train_loss"] for record in folder.rounds[1:]]


@pytest.mark.parametrize(
    "strategy", ["fedavg-exact", pytest.param("fisher-product", marks=pytest.mark.slow)]
)
def test_clients_of_different_ranks_learn_one_adapter_together(
    run_config: Config, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    folder = run(run_config(adapter__ranks="2,4,1", strategy__name=strategy, learning_rate=0.02))
    assert losses(folder)[1] < losses(folder)[0]
    assert not any(record["failures"]["train"] for record in folder.rounds)
    assert len(folder.rounds[2]["accuracy_per_client"]) == 3
    assert _rank(adapters(folder)) == 4
    assert all(value.isfinite().all() and value.any() for value in adapters(folder).values())
    assert "ranks 2, 4, 1 in turn, merged at 4: up to 768 trained" in capsys.readouterr().out


def test_a_client_of_a_lower_rank_uploads_and_exchanges_less(
    run_config: Config, received: list[dict[int, int]]
) -> None:
    wide = run(run_config(run__name="wide", strategy__name="fedavg-exact")).rounds[1]
    narrow = run(run_config(run__name="narrow", **RANKS)).rounds[1]
    assert received[0] == {0: 4, 1: 4, 2: 4} and received[-1] == {0: 2, 1: 4, 2: 1}
    saved = (4 + 4 + 4 - 2 - 4 - 1) * SITES * 2 * WIDTH * FLOAT
    assert wide["round_bytes_up"] - narrow["round_bytes_up"] == saved
    assert narrow["round_bytes_down"] == wide["round_bytes_down"]
    assert narrow["step_bytes_up"] < wide["step_bytes_up"]
    assert narrow["step_bytes_down"] < wide["step_bytes_down"]


def test_the_order_of_replies_changes_no_bit(run_config: Config) -> None:
    first = adapters(run(run_config(run__name="a", **RANKS), order=1))
    second = adapters(run(run_config(run__name="b", **RANKS), order=2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy__name": "fedavg"},
        pytest.param(
            {"strategy__name": "feddpa-f", "strategy__local_rank": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_naming_the_rank_that_all_have_changes_no_bit(
    run_config: Config, strategy: dict[str, Any]
) -> None:
    plain = adapters(run(run_config(run__name="plain", **strategy)))
    named = run_config(run__name="named", adapter__ranks="4,4", **strategy)
    assert all(torch.equal(v, plain[name]) for name, v in adapters(run(named)).items())


def test_the_rank_of_a_run_is_kept_where_no_client_has_it(run_config: Config) -> None:
    folder = run(run_config(strategy__name="fedavg-exact", adapter__ranks="1", num_server_rounds=1))
    assert _rank(adapters(folder)) == 4


@pytest.mark.parametrize("strategy", ["fedavg", "fednano", "FedAdam"])
def test_strategies_that_merge_factors_refuse_different_ranks(
    run_config: Config, strategy: str
) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.ranks = '2,4'.*: accumulate, fedavg-exact, "):
        run(run_config(strategy__name=strategy, adapter__ranks="2,4"))


def _nodes(ranks: dict[int, Any]) -> Callable[[int], dict[str, Any]]:
    def node_config(partition: int) -> dict[str, Any]:
        own = {"adapter-rank": ranks[partition]} if partition in ranks else {}
        return {"partition-id": partition, "num-partitions": 3, **own}

    return node_config


def test_a_nodes_own_rank_comes_first(run_config: Config, received: list[dict[int, int]]) -> None:
    run(run_config(**RANKS, num_server_rounds=1), node_config=_nodes({1: 3}))
    assert received == [{0: 2, 1: 3, 2: 1}]


@pytest.mark.parametrize(
    ("strategy", "rank", "says"),
    [
        ("fedavg-exact", 5, "must be a whole number from 1 to adapter.rank = 4"),
        ("fedavg-exact", 0, "must be a whole number"),
        ("fedavg-exact", "2", "must be a whole number"),
        ("fedavg", 2, "needs adapters of rank adapter.rank from every client"),
    ],
)
def test_a_node_with_a_rank_that_cannot_be_does_no_work(
    run_config: Config, capsys: pytest.CaptureFixture[str], strategy: str, rank: Any, says: str
) -> None:
    flat = run_config(strategy__name=strategy, min_replies=3)
    with pytest.raises(TooFewClientsError):
        run(flat, node_config=_nodes({2: rank}))
    assert f"adapter-rank = {rank!r}" in (said := capsys.readouterr().out) and says in said


def test_a_node_that_would_pack_adapters_of_its_own_rank_trains_nothing(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = {"upload__adapters": "int8", "strategy__name": "fedavg-exact"}
    folder = run(run_config(num_server_rounds=1, **packed), node_config=_nodes({2: 2, 1: 4}))
    failures = folder.rounds[0]["failures"]["evaluate"]  # at its first message
    assert len(failures) == 1
    assert "packed adapters are changes of those that were sent" in str(failures)
    assert "adapter-rank = 2" in capsys.readouterr().out
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "1"]


@pytest.mark.slow
def test_clients_of_different_ranks_may_pack_their_fisher_values(run_config: Config) -> None:
    settings = {"strategy__name": "fisher-product", "adapter__ranks": "2,4,1"}
    plain = run(run_config(run__name="plain", num_server_rounds=1, **settings))
    settings["upload__fisher"] = "log4"
    packed = run(run_config(run__name="packed", num_server_rounds=1, **settings))
    assert sorted(packed.rounds[1]["train_loss_per_client"]) == ["0", "1", "2"]
    assert packed.rounds[1]["round_bytes_up"] < plain.rounds[1]["round_bytes_up"]
    wanted, found = adapters_of(adapters(plain)), adapters_of(adapters(packed))
    for name, one in wanted.items():
        product = one.b @ one.a
        assert (found[name].b @ found[name].a - product).norm() <= 0.2 * product.norm(), name


def test_only_adapters_of_one_lower_rank_are_accepted(run_config: Config) -> None:
    config = RunConfig.parse(run_config()).adapter
    sent = to_arrays(adapter_state(build_adapters(WIDTH, config, seed=0)))

    def reply(theta: dict[str, Tensor]) -> Message:
        return train_reply(to_arrays(theta))

    def state(rank: int, width: int = WIDTH) -> dict[str, Tensor]:
        wide = RunConfig.parse(run_config(adapter__rank=8)).adapter
        return adapter_state(build_adapters(width, wide.at(rank), seed=0))

    for rank in (1, 3, 4):
        receive_update(reply(state(rank)), sent, lower_ranks=True)
    mixed = {n: (state(2) if "image" in n else state(3))[n] for n in state(2)}
    halves = {n: (state(2) if "lora_A" in n else state(3))[n] for n in state(2)}
    one = {n: v for n, v in state(2).items() if "image" in n}
    for bad in (state(5), state(2, width=47), mixed, halves, one, {}):
        with pytest.raises(ValueError, match="or a lower rank"):
            receive_update(reply(bad), sent, lower_ranks=True)
    with pytest.raises(ValueError, match="asked for"):
        receive_update(reply(state(3)), sent)
    with pytest.raises(ValueError, match="or a lower rank"):
        receive_update(reply(state(1)), ArrayRecord({}), lower_ranks=True)
    assert from_arrays(sent).keys() == state(2).keys()


def test_the_scale_is_the_same_at_every_rank(run_config: Config) -> None:
    config = RunConfig.parse(run_config(adapter__rank=12, adapter__alpha=30.0)).adapter
    for rank in (1, 5, 12):
        built: Any = build_adapters(WIDTH, config.at(rank), seed=0).base_model.model
        layer = built.text_adapter
        assert layer.scaling["default"] == pytest.approx(30 / 12)
        assert layer.lora_A["default"].weight.shape == (rank, WIDTH)


def test_partitions_take_their_ranks_in_turn(run_config: Config) -> None:
    config = RunConfig.parse(run_config(adapter__ranks=" 2, 4,1")).adapter
    assert [config.rank_of(k) for k in range(5)] == [2, 4, 1, 2, 4]
    assert RunConfig.parse(run_config()).adapter.rank_of(7) == 4


@pytest.mark.slow
def test_a_host_that_batches_across_clients_serves_their_different_ranks(
    run_config: Config,
) -> None:
    expected = adapters(run(run_config(run__name="one", **RANKS)))
    folder = run(run_config(run__name="batched", llm__batch_tokens=200, **RANKS))
    assert not folder.rounds[2]["failures"]["train"]
    for name, value in adapters(folder).items():
        assert (value - expected[name]).abs().max() < 1e-3 * expected[name].abs().max(), name
