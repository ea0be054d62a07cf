"""What a process keeps between the clients that it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.edge import client as client_module
from fednano_flwr.edge.client import Client, Place


def test_the_data_are_dealt_once_for_all_clients_of_a_process(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt = []
    deal = client_module.all_shards
    monkeypatch.setattr(client_module, "all_shards", lambda *a: dealt.append(a) or deal(*a))
    client_module._shards.cache_clear()
    client_module._encoded_shard.cache_clear()
    config = RunConfig.parse(run_config())
    clients = [Client(config, Place(k, 3)) for k in range(3)]
    assert len(dealt) == 1
    uids = [{q.sample.uid for q in client.shard.train} for client in clients]
    assert all(uids) and not uids[0] & uids[1] and not uids[1] & uids[2]
