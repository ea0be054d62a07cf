"""What a process keeps between the clients that it serves, and what memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.data import shard
from fednano_flwr.edge import client as module
from fednano_flwr.edge import loaded
from fednano_flwr.edge.client import Client, peak_memory_mb
from fednano_flwr.edge.loaded import Place


def test_the_data_are_dealt_once_for_all_clients_of_a_process(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt = []
    deal = shard.all_shards
    monkeypatch.setattr(shard, "all_shards", lambda *a: dealt.append(a) or deal(*a))
    shard.read_shards.cache_clear()
    loaded.encoded_shard.cache_clear()
    config = RunConfig.parse(run_config())
    clients = [Client(config, Place(k, 3)) for k in range(3)]
    assert len(dealt) == 1
    uids = [{q.sample.uid for q in client.shard.train} for client in clients]
    assert all(uids) and not uids[0] & uids[1] and not uids[1] & uids[2]


@pytest.mark.parametrize(("system", "peak"), [("linux", 3 * 2**10), ("darwin", 3 * 2**20)])
def test_peak_memory_is_in_mib_whatever_unit_the_system_has(
    monkeypatch: pytest.MonkeyPatch, system: str, peak: int
) -> None:
    monkeypatch.setattr(module.sys, "platform", system)
    monkeypatch.setattr(module.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=peak))
    assert peak_memory_mb() == 3.0
