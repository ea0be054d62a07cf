"""Runs a check on many random inputs and counts how each ended."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

RSS_BOUND = 96 * 2**20
"""Bytes that a run may leave this process larger: allocators keep some of what was freed."""
Check = Callable[[random.Random], Iterator[str]]
"""Makes inputs of random numbers; yields how each ended."""


class Tally:
    """How many inputs of each kind ended how, and how long they took.

    Args:
        start: of the random numbers; those of one start are the same each time.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.ends: dict[str, Counter[str]] = {}
        self.seconds: dict[str, float] = {}

    def run(self, kind: str, examples: int, check: Check) -> None:
        """Have `examples` draws checked; a failure names the one to look at."""
        ends, began = self.ends.setdefault(kind, Counter()), time.perf_counter()
        try:
            for number in range(examples):
                try:
                    ends.update(check(random.Random(f"{self.start} {kind} {number}")))
                except Exception as error:
                    error.add_note(f"{kind}, draw {number} of FEDNANO_FUZZ_SEED={self.start}")
                    raise
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - began

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
