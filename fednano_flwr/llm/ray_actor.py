"""A replica as a Ray actor: its process, and what Ray says about it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

from fednano_flwr.exchange.protocol import LLMService

LONGEST_REASON = 300
ASKED_SECONDS = 2.0
KILLED_SECONDS = 5.0


def start_replica(
    make: Callable[[], LLMService], num_gpus: float, concurrent_calls: int, folder: str
) -> Any:
    """An actor that holds a `Replica`, with the code that this process has.

    Its class is sent by value and finds this process's `sys.path` before anything of ours is
    imported there: the app bundle of a run, and not what lies in Ray's working directory.

    Args:
        folder: for its temporary files; a process that is killed leaves them behind.
    """

    class LLMReplica:
        def __init__(self, path: list[str], made: bytes, folder: str) -> None:
            os.makedirs(folder, exist_ok=True)  # on another machine it is not there
            tempfile.tempdir = folder
            sys.path[:] = path + [entry for entry in sys.path if entry not in path]
            from fednano_flwr.llm.replica import Replica

            self.replica = Replica(pickle.loads(made))

        @ray.method(concurrency_group="health")
        def ping(self) -> tuple[int, str]:
            return os.getpid(), ray.get_runtime_context().get_node_id()

        @ray.method(concurrency_group="calls")
        def load(self) -> Any:
            return self.replica.load()

        @ray.method(concurrency_group="calls")
        def call(self, *arguments: Any) -> Any:
            return self.replica.call(*arguments)

    options: dict[str, Any] = dict(
        num_cpus=0,  # simulated clients have them all
        num_gpus=num_gpus,
        max_restarts=0,
        concurrency_groups={"health": 1, "calls": concurrent_calls},
    )
    return ray.remote(**options)(LLMReplica).remote(
        [os.path.abspath(entry) for entry in sys.path], pickle.dumps(make), folder
    )


def process_of(ping: tuple[int, str]) -> int:
    """Process id of a replica that answered so; 0 if it runs on another machine."""
    pid, node = ping
    return pid if node == ray.get_runtime_context().get_node_id() else 0


def end_replica(actor: Any, pid: int) -> None:
    """End its process, whatever it does, and wait until what it held is free."""
    with suppress(RayError, ValueError):  # Ray was ended meanwhile, and the replica with it
        if ray.is_initialized():
            ray.kill(actor)
    if pid and not _gone(pid, ASKED_SECONDS):  # Ray asks it first; a hung one does not listen
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _gone(pid, KILLED_SECONDS)


def _gone(pid: int, seconds: float) -> bool:
    """Whether the process ends within the time."""
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def check_ray() -> None:
    """Ray starts a cluster anew where it was ended: that is not what is wanted here."""
    if not ray.is_initialized():
        raise RuntimeError("Ray was ended in this process")


def one_line(error: BaseException) -> str:
    """The telling line of an error; Ray's run over many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "because" in line] or lines or [type(error).__name__]
    return telling[0].partition(" Some common causes")[0][:LONGEST_REASON]
