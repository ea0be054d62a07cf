"""Whole runs of the strategies that need something of the client."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.cli.partition import partition_to_folder
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.data.shard import Shard, Shards, read_shards
from fednano_flwr.data.table import Questions
from fednano_flwr.edge import process_cache
from fednano_flwr.edge.client import Client
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.shard import ClientSpec
from fednano_flwr.preflight import check_strategy
from fednano_flwr.rounds.records import to_arrays
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.strategies.base import local_work_of, trains_one
from fednano_flwr.strategies.registry import make_strategy
from tests.local_grid import LocalGrid

Config = Callable[..., dict[str, Any]]
State = dict[str, torch.Tensor]


def run(flat: dict[str, Any], clients: int = 3, grid: type[LocalGrid] = LocalGrid) -> RunFolder:
    return server_app.federate(grid(client_app.app, flat, clients), 1, RunConfig.parse(flat))


def adapters(folder: RunFolder) -> State:
    return load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")


def kept(flat: dict[str, Any], name: str) -> list[State]:
    """What the clients keep of round 2 under a name, in the order of their partitions."""
    folder = Path(flat["edge.state-dir"])
    return [load_file(file) for file in sorted(folder.glob(f"1/client-*/{name}.2.safetensors"))]


def same(a: State, b: State) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def trained_bytes(folder: RunFolder) -> int:
    """What the replies to round 1's train messages took; those to evaluate are as in round 0."""
    return folder.rounds[1]["round_bytes_up"] - folder.rounds[0]["round_bytes_up"]


def test_strategies_say_what_they_ask_of_clients(defaults: dict[str, Any]) -> None:
    def work(name: str) -> LocalWork:
        changed = {"strategy.name": name, "strategy.proximal-mu": 0.3, "strategy.local-rank": 5}
        return local_work_of(make_strategy(RunConfig.parse({**defaults, **changed}).strategy))

    assert work("fedavg") == work("FedAvg") == work("FedAdam") == LocalWork()
    assert work("fednano") == LocalWork(fisher="pass")
    assert work("fedprox") == LocalWork(proximal_mu=0.3)
    assert work("feddpa-f") == LocalWork(adapters="both", local_rank=5)
    assert work("locft") == LocalWork(adapters="own")
    assert work("centralized") == LocalWork(data="all")


def test_only_centralized_trains_one_client(defaults: dict[str, Any]) -> None:
    names = ("fedavg", "FedAvg", "locft", "centralized")
    made = [RunConfig.parse({**defaults, "strategy.name": name}).strategy for name in names]
    assert [trains_one(make_strategy(strategy)) for strategy in made] == [False] * 3 + [True]


def test_fedprox_without_its_term_is_fedavg_and_with_it_stays_nearer(run_config: Config) -> None:
    def after(name: str, **keys: Any) -> State:
        return adapters(run(run_config(run__name=name, num_server_rounds=1, **keys)))

    free = after("avg", strategy__name="fedavg")
    none, held = (
        after(f"mu-{mu}", strategy__name="fedprox", strategy__proximal_mu=mu) for mu in (0.0, 100.0)
    )
    start = adapter_state(build_adapters(48, RunConfig.parse(run_config()).adapter, 0))
    assert same(none, free)
    for name in free:
        assert (held[name] - start[name]).norm() < (free[name] - start[name]).norm(), name


def test_locft_keeps_each_clients_adapters_with_it_and_sends_none(run_config: Config) -> None:
    flat = run_config(strategy__name="locft")
    folder = run(flat)
    first, second, third = kept(flat, "own-adapters")
    assert not same(first, second) and not same(second, third)
    start = adapter_state(build_adapters(48, RunConfig.parse(flat).adapter, 0))
    assert same(adapters(folder), start)  # the server's have never changed
    assert not folder.rounds[2]["failures"]["train"]
    assert folder.rounds[2]["train_loss"] < folder.rounds[1]["train_loss"]
    assert folder.rounds[1]["accuracy_per_client"] != folder.rounds[0]["accuracy_per_client"]
    one_client = sum(value.nbytes for value in start.values())
    assert 0 < trained_bytes(folder) < one_client / 2  # all three together


def test_a_single_client_by_itself_is_fedavg(run_config: Config) -> None:
    keys = {"min_available_nodes": 1, "round_timeout": 60.0}
    flat = run_config(run__name="alone", strategy__name="locft", **keys)
    alone = run(flat, clients=1)
    expected = run(run_config(run__name="avg", strategy__name="fedavg", **keys), clients=1)
    assert same(kept(flat, "own-adapters")[0], adapters(expected))
    for got, wanted in zip(alone.rounds, expected.rounds, strict=True):
        assert got["accuracy"] == wanted["accuracy"] and got["train_loss"] == wanted["train_loss"]


class FreshProcesses(LocalGrid):
    """Training meets a process that has nothing in memory."""

    def answer(self, message: Message) -> list[Message]:
        if message.metadata.message_type == "train":
            process_cache.clear()
        return super().answer(message)


class Forgetful(LocalGrid):
    """Clients lose what they kept before every message."""

    def answer(self, message: Message) -> list[Message]:
        for file in Path(self._config["edge.state-dir"]).rglob("local-adapter.*.safetensors"):
            file.unlink()
        return super().answer(message)


def test_feddpa_fs_local_adapters_stay_and_outlive_the_process(run_config: Config) -> None:
    def dual(name: str) -> dict[str, Any]:
        return run_config(run__name=name, strategy__name="feddpa-f", strategy__local_rank=2)

    folder, fresh = run(dual("a")), run(dual("fresh"), grid=FreshProcesses)
    local = kept(dual("a"), "local-adapter")
    assert len(local) == 3 and not same(local[0], local[1]) and not same(local[1], local[2])
    assert {min(value.shape) for value in local[0].values()} == {2}
    assert same(adapters(fresh), adapters(folder))
    assert all(map(same, kept(dual("fresh"), "local-adapter"), local))
    assert not same(adapters(run(dual("forgetful"), grid=Forgetful)), adapters(folder))
    assert {value.shape for value in adapters(folder).values()} == {(4, 48), (48, 4)}
    sent = 3 * to_arrays(adapters(folder)).count_bytes()
    assert sent < trained_bytes(folder) < 1.2 * sent


def test_feddpa_f_starts_as_the_frozen_model(run_config: Config) -> None:
    def frozen(name: str) -> dict[str, Any]:
        return run(run_config(run__name=name, strategy__name=name, num_server_rounds=0)).rounds[0]

    both, one = frozen("feddpa-f"), frozen("fedavg")
    assert both["accuracy_per_client"] == one["accuracy_per_client"]
    assert both["step_bytes_up"] > one["step_bytes_up"]  # of two adapters


def test_centralized_is_a_client_that_has_all_questions(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    central = run(run_config(run__name="all", strategy__name="centralized", min_replies=3))
    assert [sorted(r["train_loss_per_client"]) for r in central.rounds] == [[], ["0"], ["0"]]
    assert central.rounds[2]["train_questions_per_client"] == {"0": 60}
    assert central.rounds[2]["train_loss"] < central.rounds[1]["train_loss"]
    assert sorted(central.rounds[2]["accuracy_per_client"]) == ["0", "1", "2"]

    def in_order(shards: Shards, partition: int) -> Shard:
        return Shard(shards.all_train(), shards[partition].test)

    monkeypatch.setattr(Shards, "of_client", in_order)
    process_cache.clear()
    plain = {"strategy__name": "fedavg", "min_available_nodes": 1, "round_timeout": 60.0}
    single = run(run_config(run__name="one", **plain), clients=1)
    process_cache.clear()
    assert same(adapters(central), adapters(single))
    assert central.rounds[2]["accuracy_by"] == single.rounds[2]["accuracy_by"]


def test_centralized_needs_the_whole_data_set(run_config: Config, tmp_path: Path) -> None:
    config = RunConfig.parse(run_config(strategy__name="centralized"))
    partition_to_folder(config, 2, tmp_path / "shards", map_only=False)
    one = Client(config, ClientSpec(0, 2, str(tmp_path / "shards" / "client-0")))
    theta = adapter_state(one.edge.adapters)
    with pytest.raises(ConfigError, match=r"'centralized' trains on all.*data-path.*client-0"):
        one.train(theta, None, 1, LocalWork(data="all"))  # type: ignore[arg-type]
    few = RunConfig.parse(run_config(strategy__name="centralized", edge__vocabulary="shard"))
    with pytest.raises(ConfigError, match=r'use edge\.vocabulary = "full"'):
        check_strategy(few)


def test_a_falling_rate_reaches_the_clients(run_config: Config) -> None:
    def after(name: str, **keys: Any) -> State:
        return adapters(run(run_config(run__name=name, strategy__name="fedavg", **keys)))

    schedule = {"learning_rate_schedule": "linear", "learning_rate_end": 0.0}
    falling = after("falling", **schedule)
    one_round = after("one", num_server_rounds=1)
    assert same(falling, one_round)  # the second round's rate is zero


def test_a_fraction_scores_between_the_first_and_the_last_round(run_config: Config) -> None:
    keys = {"fraction_train": 0.5, "num_server_rounds": 4, "strategy__name": "fedavg"}
    folder = run(run_config(fraction_evaluate=0.5, **keys), clients=4)
    scored = [sorted(r["accuracy_per_client"]) for r in folder.rounds]
    trained = [sorted(r["train_loss_per_client"]) for r in folder.rounds]
    assert [len(clients) for clients in scored] == [4, 2, 2, 2, 4]
    assert scored[1:4] != trained[1:4]
    assert folder.best["round"] in (0, 4)


def record(number: int, **accuracies: float) -> dict[str, Any]:
    mean = sum(accuracies.values()) / len(accuracies)
    return {"round": number, "accuracy": mean, "accuracy_per_client": accuracies}


def test_the_best_round_is_one_that_everyone_scored(run_config: Config) -> None:
    folder = RunFolder(RunConfig.parse(run_config()))
    folder.rounds = [record(0, a=0.2, b=0.4), record(1, b=0.9), record(2, a=0.4, b=0.4)]
    assert folder.best["round"] == 2


def test_all_clients_questions_are_the_same_whatever_the_partition(
    run_config: Config,
) -> None:
    def union(clients: int, **keys: Any) -> tuple[Questions, Shards]:
        config = RunConfig.parse(run_config(**keys))
        shards = read_shards(config.dataset, config.seed, clients)
        return shards.all_train(), shards

    two, _ = union(2)
    five, _ = union(5, seed=1)
    assert two.uids == five.uids and len(two) == 60
    cut, shards = union(3, dataset__test_fraction=0.3)
    tested = {uid for shard in shards for uid in shard.test.uids}
    assert len(tested) > 10 and set(cut.uids) | tested == set(two.uids)
    assert not set(cut.uids) & tested
