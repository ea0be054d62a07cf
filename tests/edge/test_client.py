"""What a process keeps between the clients that it serves, and what memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.data import shard
from fednano_flwr.edge import client as module
from fednano_flwr.edge import process_cache
from fednano_flwr.edge.client import Client, peak_memory_mb
from fednano_flwr.edge.shard import ClientSpec, EncodedShard
from fednano_flwr.in_process import run_in_process


def test_the_data_are_dealt_once_for_all_clients_of_a_process(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt = []
    deal = shard.all_shards
    monkeypatch.setattr(shard, "all_shards", lambda *a: dealt.append(a) or deal(*a))
    process_cache.clear()
    config = RunConfig.parse(run_config())
    clients = [Client(config, ClientSpec(k, 3)) for k in range(3)]
    assert len(dealt) == 1
    uids = [{q.sample.uid for q in client.shard.train} for client in clients]
    assert all(uids) and not uids[0] & uids[1] and not uids[1] & uids[2]


@pytest.mark.parametrize(
    ("estimate", "asked"),
    [
        ("pass", ["training", "pass by 4"]),
        ("pass-samples", ["training", "pass by 1"]),
        ("running", ["training, squares"]),
        ("running-last", ["training, squares of the last epoch"]),
    ],
)
def test_a_fisher_estimate_says_what_a_client_does_for_it(
    run_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    estimate: str,
    asked: list[str],
) -> None:
    done: list[str] = []
    train, pass_over = module.train, module.fisher_diagonal

    def note_training(*a: Any) -> Any:
        squares, last = a[-3:-1]
        done.append("training" + ", squares" * squares + " of the last epoch" * last)
        return train(*a)

    def note_pass(*a: Any) -> Any:
        done.append(f"pass by {a[3]}")
        return pass_over(*a)

    monkeypatch.setattr(module, "train", note_training)
    monkeypatch.setattr(module, "fisher_diagonal", note_pass)
    strategy = {"strategy__name": "fednano", "strategy__fisher_estimate": estimate}
    flat = run_config(num_server_rounds=1, local_epochs=1, batch_size=4, **strategy)
    run_in_process(RunConfig.parse(flat), 2)
    assert done == 2 * asked


@pytest.mark.parametrize(("system", "peak"), [("linux", 3 * 2**10), ("darwin", 3 * 2**20)])
def test_peak_memory_is_in_mib_whatever_unit_the_system_has(
    monkeypatch: pytest.MonkeyPatch, system: str, peak: int
) -> None:
    monkeypatch.setattr(module.sys, "platform", system)
    monkeypatch.setattr(module.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=peak))
    assert peak_memory_mb() == 3.0


def test_each_shard_of_a_run_in_one_process_is_tokenized_once(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    encode = EncodedShard.encode
    monkeypatch.setattr(EncodedShard, "encode", lambda *a: encoded.append(1) or encode(*a))
    monkeypatch.setattr(
        process_cache, "_client_data", lru_cache(1)(process_cache._load_client_data)
    )
    clients = process_cache.CLIENTS_KEPT + 2
    flat = run_config(
        num_server_rounds=1, local_epochs=1, seed=3, dataset__partitioner="iid", adapter__rank=2
    )
    run_in_process(RunConfig.parse(flat), clients)
    assert len(encoded) == clients
