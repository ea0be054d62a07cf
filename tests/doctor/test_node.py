"""Node configs that Flower refuses, or takes and makes nothing of."""

from __future__ import annotations

import pytest

from fednano_flwr.config.node import NodeConfig
from fednano_flwr.doctor.node import read_node
from tests.doctor.found import only


def test_a_node_config_is_read_as_flower_reads_it() -> None:
    node, findings = read_node('data-path="/a b" edge-path="/c" device="cuda:0" adapter-rank=4')
    assert node == NodeConfig("/a b", "/c", "cuda:0", adapter_rank=4)
    assert not findings


@pytest.mark.parametrize(
    ("text", "says", "do"),
    [
        ("data-path=/a", "cannot be read", "double quotes"),
        ("/nowhere/node.toml", "No such file", "double quotes"),
        ('data-path ="/a"', "data-path =", "no space"),
        ('edge-pth="/a"', "edge-pth", "did you mean edge-path?"),
        ('bundle-path="/a"', "bundle-path", "edge-path"),
        ('partition-id="1" num-partitions=2', "partition-id = '1'", "numbers in none"),
        ("partition-id=3 num-partitions=3", "partition-id = 3", "numbers in none"),
        ("partition-id=3", "num-partitions", "numbers in none"),
        ("adapter-rank=true", "adapter-rank = True", "numbers in none"),
        ("device=0", "device = 0", "double quotes"),
    ],
)
def test_a_slip_in_the_text_is_named_with_how_to_write_it(text: str, says: str, do: str) -> None:
    _, findings = read_node(text)
    found = only(findings, "problem")
    assert says in found.what and do in found.do


def test_one_bad_key_does_not_hide_the_others() -> None:
    node, findings = read_node('device=0 data-path="/a" adapter-rank=0')
    assert node.data_path == "/a" and len(findings) == 2
