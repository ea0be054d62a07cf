"""What a process keeps, and how much of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.edge import loaded
from fednano_flwr.edge.process_cache import Kept
from fednano_flwr.in_process import run_in_process


def test_the_least_recently_used_goes_first_and_another_bound_starts_anew() -> None:
    made: list[int] = []
    squares = Kept(lambda n: made.append(n) or n * n, 2)
    assert [squares(n) for n in (1, 2, 1, 3, 1, 2)] == [1, 4, 1, 9, 1, 4]
    assert made == [1, 2, 3, 2]
    squares.keep(3)
    assert [squares(n) for n in (1, 2, 3, 1, 2, 3)] == [1, 4, 9, 1, 4, 9]
    assert made == [1, 2, 3, 2, 1, 2, 3]
    squares.keep(3)
    squares(1)
    squares.cache_clear()
    squares(1)
    assert made[7:] == [1]


def test_each_shard_of_a_run_in_one_process_is_tokenized_once(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoded: list[int] = []
    encode = loaded._encode
    monkeypatch.setattr(loaded, "_encode", lambda *a: encoded.append(1) or encode(*a))
    clients = loaded.SHARDS_KEPT + 2
    flat = run_config(
        num_server_rounds=1, local_epochs=1, seed=3, dataset__partitioner="iid", adapter__rank=2
    )
    run_in_process(RunConfig.parse(flat), clients)
    loaded.keep_shards(loaded.SHARDS_KEPT)
    assert len(encoded) == clients
