"""Hundreds of rounds leave every process as large as it was; and what would be seen if not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak.census import MB, census, size_of
from benchmarks.soak.flat import complaints, growth, slope, steps
from tests.conftest import REPOSITORY

ROUNDS = list(range(20, 501, 20))


def judge(memory: list[float], **counts: list[float]) -> list[str]:
    columns = {"own_mb": memory, **counts}
    samples = [{"server": {k: v[i] for k, v in columns.items()}} for i in range(len(memory))]
    return complaints(ROUNDS, samples, kb_a_round=5.0, mb=5.0)


def warmed_up(leak: float = 0.0) -> list[float]:
    """MB of a process that warms up, with noise, and leaks so many MB a round."""
    noise = np.random.default_rng(0).normal(0, 0.3, len(ROUNDS))
    return [
        400 - 60 * math.exp(-number / 40) + leak * number + float(one)
        for number, one in zip(ROUNDS, noise, strict=True)
    ]


def test_warming_up_is_no_leak() -> None:
    assert judge(warmed_up()) == []


@pytest.mark.parametrize("kb", [10, 50])
def test_a_leak_of_some_kilobytes_a_round_is_found_below_the_noise(kb: int) -> None:
    found = judge(warmed_up(leak=kb / 1e3))
    assert "memory grows by" in found[0] and "KB a round" in found[0]
    assert any("has grown by" in line for line in found) == (kb == 50)


def test_the_records_of_the_runs_rounds_may_grow_and_nothing_beside_them() -> None:
    history = [0.008 * number for number in ROUNDS]
    assert judge(warmed_up(leak=0.008), history_mb=history) == []
    assert judge(warmed_up(leak=0.018), history_mb=history) != []


def test_the_size_of_a_record_is_that_of_all_in_it() -> None:
    text = "x" * 1000
    record = {"accuracy": {"0": text, "1": text}}
    assert 1000 < size_of([record], set()) < 2000  # what is there twice counts once
    assert size_of([record, {"other": "y" * 1000}], set()) > 2000


def test_one_small_jump_is_no_leak_and_many_are() -> None:
    half = len(ROUNDS) // 2
    once = [400.0] * (half + 5) + [403.0] * (len(ROUNDS) - half - 5)
    assert judge(once) == []
    again = [400.0 + 3 * (i // 3) for i in range(len(ROUNDS))]
    assert len(judge(again)) == 2


@pytest.mark.parametrize("what", ["files_open", "threads", "connections", "graphs"])
def test_one_more_of_what_should_stay_is_found(what: str) -> None:
    stays = [400.0] * len(ROUNDS)
    counts = [7.0] * len(ROUNDS)
    assert judge(stays, **{what: counts}) == []
    found = judge(stays, **{what: [*counts[:-1], 8.0]})
    assert found == [f"server: {what} has grown from 7 to 8"]


def test_growth_and_slope_of_known_lines() -> None:
    assert slope([0, 10, 20, 30], [1.0, 3.0, 5.0, 9.0]) == pytest.approx((0.2 + 8 / 30) / 2)
    assert steps([0, 10, 20, 30], [1.0, 3.0, 5.0, 9.0]) == pytest.approx(0.2)
    assert growth([1.0, 1.0, 2.0, 9.0, 9.0]) == 8.0


def test_a_census_sees_memory_and_files_that_are_kept(tmp_path: Path) -> None:
    before = census()
    kept = mmap(-1, 400_000_000, flags=MAP_PRIVATE | MAP_ANONYMOUS)  # no allocator has it already
    kept[::PAGESIZE] = bytes(len(kept[::PAGESIZE]))  # far more than other tests' threads use
    files = [(tmp_path / str(number)).open("w") for number in range(3)]
    after = census()
    for file in files:
        file.close()
    size = len(kept) / MB
    kept.close()
    assert after["own_mb"] - census()["own_mb"] > 0.5 * size
    assert after["files_open"] == before["files_open"] + 3


@pytest.mark.slow
def test_five_hundred_rounds_leave_nothing_behind(tmp_path: Path) -> None:
    result = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--rounds", "500", "--json", str(result)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    record = json.loads(result.read_text(encoding="utf-8"))
    assert record["complaints"] == []
    assert [one["round"] for one in record["samples"]] == list(range(20, 500, 20))
    last = record["samples"][-1]
    assert last["server"]["connections"] > 0 and last["server"]["features_kb"] > 0
