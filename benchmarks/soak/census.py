"""What a process holds: memory, files, threads, connections, objects."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import psutil

from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.runs.folder import RunFolder

KB, MB = 1e3, 1e6


def census() -> dict[str, float]:
    """Of this process, after a collection of garbage.

    `own_mb` is memory that belongs to no file (RssAnon). Not USS, which grows when another process
    that has mapped the same libraries ends. `rss_mb` counts pages of files too. `history_mb` is
    what the records of a run's rounds take, which grow with the run.
    """
    gc.collect()
    process = psutil.Process()
    memory = process.memory_info()
    objects = gc.get_objects()  # after that, for the list alone takes megabytes
    found = {
        "own_mb": (memory.rss - memory.shared) / MB,
        "rss_mb": memory.rss / MB,
        "files_open": process.num_fds(),
        "threads": process.num_threads(),
        "connections": len(process.net_connections("inet")),
        "objects": len(objects),
    }
    if hosts := [one for one in objects if type(one) is FrozenLLM]:
        found["features_kb"] = sum(host.features.bytes_in_memory for host in hosts) / KB
        found["graphs"] = sum(len(host.graphs) for host in hosts)
    if runs := [one for one in objects if type(one) is RunFolder]:
        found["history_mb"] = sum(size_of(run.rounds, set()) for run in runs) / MB
    return found


def size_of(value: object, seen: set[int]) -> int:
    """Bytes of a value made of dictionaries and lists, and of all that is in it, once each."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    inside: list[object] = []
    if isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        inside = value
    return sys.getsizeof(value) + sum(size_of(one, seen) for one in inside)


def files_in(folder: Path) -> int:
    return sum(file.is_file() for file in folder.rglob("*"))
