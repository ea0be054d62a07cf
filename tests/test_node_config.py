"""What a node config may say, and what the run config is on its node."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, MessageType, RecordDict

from fednano_flwr import client_app
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.config.node import KEYS, NodeConfig
from fednano_flwr.in_process import InProcessGrid

DOC = Path(__file__).parents[1] / "docs" / "config.md"
Config = Callable[..., dict[str, Any]]
FULL = {
    "data-path": "/data/client-1",
    "edge-path": "/data/bundle",
    "device": "cuda:1",
    "ca-cert": "/etc/fednano/ca.crt",
    "adapter-rank": 4,
    "partition-id": 1,
    "num-partitions": 2,
}


def test_every_key_lands_in_its_attribute() -> None:
    parsed = NodeConfig.parse(FULL)
    assert {key: getattr(parsed, key.replace("-", "_")) for key in FULL} == FULL
    assert sorted(KEYS) == sorted(FULL)


def test_a_client_that_cannot_say_who_it_is_logs_the_reason_and_replies_it(
    defaults: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Unnamed(InProcessGrid):
        def node_config(self, partition: int) -> dict[str, Any]:
            return {"num-partitions": 2}  # and no partition-id

    grid = Unnamed(client_app.app, defaults, 1)
    grid.push_messages([Message(RecordDict(), 1, MessageType.QUERY)])
    (reply,) = grid._replies
    (record,) = caplog.records
    assert record.exc_info is not None and "partition-id" in str(record.exc_info[1])
    assert "partition-id" in reply.error.reason


def test_what_is_not_given_is_none() -> None:
    assert NodeConfig.parse({}) == NodeConfig(None, None, None, None, None, None, None)


def test_an_unknown_key_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown key data_path\.") as refusal:
        NodeConfig.parse({"data_path": "/data"})
    assert all(key in str(refusal.value) for key in KEYS)


def test_the_earlier_name_of_edge_path_is_refused_with_the_present_one() -> None:
    with pytest.raises(ConfigError, match="has bundle-path: this key is now edge-path"):
        NodeConfig.parse({"data-path": "/data", "bundle-path": "/bundle"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data-path": ""}, "data-path = '': must be text, and not empty"),
        ({"edge-path": 3}, "edge-path = 3: must be text"),
        ({"ca-cert": True}, "ca-cert = True: must be text"),
        ({"device": "GPU 0"}, "device = 'GPU 0': must be the name of a PyTorch device"),
        ({"device": "cuda:"}, "device = 'cuda:'"),
        ({"adapter-rank": 0}, "adapter-rank = 0: must be a whole number"),
        ({"adapter-rank": 2.0}, "adapter-rank = 2.0: must be a whole number"),
        ({"partition-id": 0}, "no num-partitions"),
        ({"num-partitions": 2}, "no partition-id"),
        ({"partition-id": "0", "num-partitions": 2}, "partition-id = '0': must be a whole number"),
        ({"partition-id": True, "num-partitions": 2}, "partition-id = True: must be a whole"),
        ({"partition-id": -1, "num-partitions": 2}, "partition-id = -1"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id = 2: must be below num-part"),
        ({"partition-id": 0, "num-partitions": 0}, "num-partitions = 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        NodeConfig.parse(given)


def test_the_nodes_device_comes_before_the_runs(run_config: Config) -> None:
    config = RunConfig.parse(run_config())
    assert NodeConfig.parse({}).applied_to(config) == config
    there = NodeConfig.parse({"device": "cuda:1"}).applied_to(config)
    assert (there.edge.device, config.edge.device) == ("cuda:1", "cpu")
    assert there.llm == config.llm


@pytest.mark.parametrize("device", ["", "CPU", "cuda 1"])
def test_the_runs_own_device_is_checked_alike(run_config: Config, device: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"edge.device = {device!r}: must be the name")):
        RunConfig.parse(run_config(edge__device=device))


def test_a_rank_above_the_runs_is_refused(run_config: Config) -> None:
    config = RunConfig.parse(run_config(adapter__rank=4))
    assert NodeConfig.parse({}).rank_in(config) == 0
    assert NodeConfig.parse({"adapter-rank": 4}).rank_in(config) == 4
    with pytest.raises(ConfigError, match=r"adapter-rank = 5.* from 1 to adapter.rank = 4"):
        NodeConfig.parse({"adapter-rank": 5}).rank_in(config)


def test_a_shard_knows_its_partition_and_must_not_be_contradicted() -> None:
    shard = {"partition_id": 1, "num_partitions": 3}
    own = {"data-path": "/data/client-1"}
    assert NodeConfig.parse(own).partition(shard) == (1, 3)
    same = {**own, "partition-id": 1, "num-partitions": 3}
    assert NodeConfig.parse(same).partition(shard) == (1, 3)
    with pytest.raises(ConfigError, match="shard in its data-path is 1 of 3"):
        NodeConfig.parse({**same, "partition-id": 0}).partition(shard)


def test_a_shard_of_a_clients_own_data_is_where_the_node_config_says() -> None:
    alone = {"partition_id": 0, "num_partitions": 1}
    own = {"data-path": "/data/client-0"}
    assert NodeConfig.parse(own).partition(alone) == (0, 1)
    placed = {**own, "partition-id": 1, "num-partitions": 3}
    assert NodeConfig.parse(placed).partition(alone) == (1, 3)


def test_a_node_that_says_no_partition_is_told_how() -> None:
    assert NodeConfig.parse({"partition-id": 1, "num-partitions": 2}).partition(None) == (1, 2)
    with pytest.raises(ConfigError, match=r"no partition-id and no data-path.*fednano partition"):
        NodeConfig.parse({}).partition(None)
    with pytest.raises(ConfigError, match=r"no partition-id, and its data-path, a file of rows"):
        NodeConfig.parse({"data-path": "/data/own.jsonl"}).partition(None)


def test_every_key_is_in_the_doc_once() -> None:
    section = DOC.read_text(encoding="utf-8").split("## Node config\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)) == sorted(KEYS)
