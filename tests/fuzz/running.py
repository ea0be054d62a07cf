"""Runs a check on many inputs and counts how each ended."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

RSS_BOUND = 96 * 2**20
"""Bytes that a run may leave this process larger: allocators keep some of what was freed."""


class Tally:
    """How many inputs of each kind ended how, and how long they took."""

    def __init__(self) -> None:
        self.ends: dict[str, Counter[str]] = {}
        self.seconds: Counter[str] = Counter()  # type: ignore[assignment]

    def note(self, kind: str, end: str) -> None:
        self.ends.setdefault(kind, Counter())[end] += 1

    @property
    def inputs(self) -> int:
        return sum(ends.total() for ends in self.ends.values())

    def table(self) -> str:
        """A line a kind: inputs, seconds, ends."""
        lines = [f"{'inputs':>8} {'seconds':>8}  kind: how they ended"]
        for kind, ends in self.ends.items():
            said = ", ".join(f"{end} {count}" for end, count in ends.most_common())
            lines.append(f"{ends.total():8} {self.seconds[kind]:8.1f}  {kind}: {said}")
        lines.append(f"{self.inputs:8} {sum(self.seconds.values()):8.1f}  in all")
        return "\n".join(lines)

    def write(self, file: Path, **facts: Any) -> None:
        kinds = {
            kind: {"seconds": round(self.seconds[kind], 1), "ends": dict(ends.most_common())}
            for kind, ends in self.ends.items()
        }
        file.write_text(json.dumps({"inputs": self.inputs, **facts, "kinds": kinds}, indent=2))


def run(
    tally: Tally,
    kind: str,
    examples: int,
    values: SearchStrategy[Any],
    check: Callable[[Any], Iterator[str]],
    start: int | None = None,
) -> None:
    """Have `check` look at drawn values; it yields how each input that it makes of one ended.

    Args:
        start: of the draws; None: the same ones each time.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=start is None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
    @given(values)
    def one(value: Any) -> None:
        for end in check(value):
            tally.note(kind, end)

    began = time.perf_counter()
    (one if start is None else seed(start)(one))()
    tally.seconds[kind] += time.perf_counter() - began  # type: ignore[assignment]


@contextmanager
def no_leak(settles: float = 5.0) -> Iterator[None]:
    """Threads are as many after the block as before, and memory is within `RSS_BOUND`."""
    gc.collect()
    threads, before = threading.active_count(), psutil.Process().memory_info().rss
    yield
    gc.collect()
    until = time.monotonic() + settles
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.05)
    assert threading.active_count() <= threads
    grown = psutil.Process().memory_info().rss - before
    assert grown < RSS_BOUND, f"{grown / 2**20:.0f} MiB more than before"


def scale() -> float:
    """How many times the inputs of `make slow` are made: FEDNANO_FUZZ_SCALE, else 1."""
    return float(os.environ.get("FEDNANO_FUZZ_SCALE", "1"))
