"""What a process holds: memory, files, threads, connections, objects."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil

from fednano_flwr.llm.host import FrozenLLM

KB, MB = 1e3, 1e6


def census() -> dict[str, float]:
    """Of this process, after a collection of garbage.

    `uss_mb` is memory that would be free if the process ended; `rss_mb` counts shared pages too.
    """
    gc.collect()
    objects = gc.get_objects()
    process = psutil.Process()
    memory = process.memory_full_info()
    found = {
        "uss_mb": memory.uss / MB,
        "rss_mb": memory.rss / MB,
        "files_open": process.num_fds(),
        "threads": process.num_threads(),
        "connections": len(process.net_connections("inet")),
        "objects": len(objects),
    }
    if hosts := [one for one in objects if type(one) is FrozenLLM]:
        found["features_kb"] = sum(host.features.bytes_in_memory for host in hosts) / KB
        found["graphs"] = sum(len(host.graphs) for host in hosts)
    return found


def files_in(folder: Path) -> int:
    return sum(file.is_file() for file in folder.rglob("*"))
