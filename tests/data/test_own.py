"""A client's own data: a shard, or a file of rows that never meets the others'."""

import json
from pathlib import Path

import pytest

from fednano_flwr.config import ConfigError, RunConfig, project
from fednano_flwr.config.node import NodeConfig
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.own import own_shard
from fednano_flwr.preflight import check_own_data, spec_of
from tests.data.conftest import settings


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    lines = [json.dumps({"question": f"q{n}", "answer": "a"}) for n in range(10)]
    file.write_text("\n".join([*lines, "{broken"]))
    return file


def test_a_file_of_rows_is_cut_into_train_and_test_by_seed_and_client(rows):
    dataset = settings(name="table", path="elsewhere", revision="v1", test_fraction=0.3)
    shard, skipped = own_shard(str(rows), dataset, 7, 1)
    assert (len(shard.train), len(shard.test)) == (7, 3)
    assert skipped == {"row is not valid JSON": 1}
    assert sorted([*shard.train.uids, *shard.test.uids])[0] == "own.jsonl:1"
    assert own_shard(str(rows), dataset, 7, 1)[0] == shard != own_shard(str(rows), dataset, 7, 2)[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_fraction": 0.0}, r"data-path.*Set dataset\.test-fraction"),
        ({"name": "messages"}, "no column for messages"),
        ({"name": "scienceqa"}, r"looks like dataset\.name = messages or table"),
        ({"max_skipped": 0.0}, "own.jsonl:11"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_place_in_the_node_config(rows, changes, says):
    dataset = settings(**{"name": "table", "test_fraction": 0.3} | changes)
    with pytest.raises(DataError, match=f"(?s){says}") as caught:
        own_shard(str(rows), dataset, 7, 0)
    assert "the node config's data-path" in str(caught.value)


def test_a_node_is_checked_before_anything_is_loaded(rows):
    flat = project.defaults(Path(__file__).parents[2])
    own = {"dataset.name": "table", "dataset.test-fraction": 0.3, "dataset.max-skipped": 0.5}
    config = RunConfig.parse(flat | own)
    assert "7 training and 3 test questions" in check_own_data(str(rows), config)
    assert "as the run config says" in check_own_data(str(rows), None)
    node = NodeConfig.parse({"data-path": str(rows), "partition-id": 1, "num-partitions": 3})
    assert (spec_of(config, node).partition, spec_of(config, node).data_path) == (1, str(rows))
    with pytest.raises(ConfigError, match="no partition-id"):
        spec_of(config, NodeConfig.parse({"data-path": str(rows)}))
    with pytest.raises(DataError, match="is not a shard"):
        check_own_data(str(rows.parent), config)
