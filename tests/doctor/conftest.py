from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.config import Dataset, RunConfig
from fednano_flwr.data.shard import read_shards
from fednano_flwr.data.shard_folder import write_shard
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.split import write_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def shard_folder(tiny_dataset: Dataset, tmp_path: Path) -> Path:
    """Client 1 of 3's questions and pictures."""
    folder = tmp_path / "client-1"
    part = read_shards(tiny_dataset, 0, 3)[1]
    write_shard(folder, part, {"partition_id": 1, "num_partitions": 3})
    return folder


@pytest.fixture
def bundle(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    write_bundle(ModelCheckpoint(str(tiny_model)), folder)
    return folder


@pytest.fixture
def config(run_config: Callable[..., dict[str, Any]]) -> Callable[..., RunConfig]:
    """The run config with some keys changed (`__` for a dot)."""
    return lambda **changes: RunConfig.parse(run_config(**changes))
