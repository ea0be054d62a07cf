"""Node configs that Flower refuses, or takes and makes nothing of."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.doctor.node import Node, check_place, check_rank, read_node
from tests.doctor.found import only, well


def test_a_node_config_is_read_as_flower_reads_it() -> None:
    node, findings = read_node('data-path="/a b" edge-path="/c" device="cuda:0" adapter-rank=4')
    assert node == Node("/a b", "/c", "cuda:0", adapter_rank=4)
    assert not findings


@pytest.mark.parametrize(
    ("text", "says", "do"),
    [
        ("data-path=/a", "cannot be read", "double quotes"),
        ("/nowhere/node.toml", "No such file", "double quotes"),
        ('data-path ="/a"', "Flower passes over it silently", "without spaces"),
        ('edge-pth="/a"', "edge-pth: no such key", "did you mean edge-path?"),
        ('bundle="/a"', "bundle: no such key", "edge-path"),
        ('partition-id="1"', "partition-id = '1': must be a whole number", "without quotes"),
        ("partition-id=true", "must be a whole number", "without quotes"),
        ("device=0", "device = 0: must be a text", 'device="…"'),
    ],
)
def test_a_slip_in_the_text_is_named_with_how_to_write_it(text: str, says: str, do: str) -> None:
    _, findings = read_node(text)
    found = only(findings, "problem")
    assert says in found.what and do in found.do


def test_one_bad_key_does_not_hide_the_others() -> None:
    assert read_node('device=0 data-path="/a"')[0].data_path == "/a"


def test_a_client_without_shard_and_number_cannot_know_its_questions() -> None:
    assert "data-path" in only(check_place(Node()), "problem").what
    assert "0 to 2" in only(check_place(Node(partition_id=3, num_partitions=3)), "problem").do
    assert well(check_place(Node(partition_id=2, num_partitions=3)))
    assert check_place(Node(data_path="/a")) == []


def test_a_rank_that_the_run_cannot_have_is_refused(config: Callable[..., RunConfig]) -> None:
    assert (
        "from 1 to adapter.rank = 4"
        in only(check_rank(Node(adapter_rank=5), config()), "problem").what
    )
    assert well(check_rank(Node(adapter_rank=2), config()))
    with pytest.raises(ConfigError, match="adapter-rank = 2"):
        check_rank(Node(adapter_rank=2), config(strategy__name="fedavg"))
