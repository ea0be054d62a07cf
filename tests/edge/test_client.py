"""What a process keeps between the clients that it serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.edge import loaded
from fednano_flwr.edge.client import Client
from fednano_flwr.edge.loaded import Place


def test_the_data_are_dealt_once_for_all_clients_of_a_process(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt = []
    deal = loaded.all_shards
    monkeypatch.setattr(loaded, "all_shards", lambda *a: dealt.append(a) or deal(*a))
    loaded._shards.cache_clear()
    loaded.encoded_shard.cache_clear()
    config = RunConfig.parse(run_config())
    clients = [Client(config, Place(k, 3)) for k in range(3)]
    assert len(dealt) == 1
    uids = [{q.sample.uid for q in client.shard.train} for client in clients]
    assert all(uids) and not uids[0] & uids[1] and not uids[1] & uids[2]
