"""Ray, and a replica of the LLM service as a Ray actor: what runs in a process of its own."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from fednano_flwr.exchange.at_host import AtHost
from fednano_flwr.exchange.protocol import Inputs, LLMInfo, LLMService

CONCURRENT_CALLS = 64
"""Inside one replica; its service queues them."""
POLL_SECONDS = 0.1


class OtherModelError(RuntimeError):
    """A replica was started again with another model than the first one."""


@dataclass(frozen=True)
class StoredPart:
    """Where Ray keeps an `AtHost`; takes its place in a call to a replica.

    Attributes:
        name: of the `AtHost`.
    """

    name: int
    reference: Any


_part: AtHost | None = None
"""The latest that this replica was given: Ray is asked for each once."""


def with_its_part(argument: Any) -> Any:
    """At a replica: an argument of a call, what it is computed with fetched."""
    stored = argument.at_host if isinstance(argument, Inputs) else argument
    if not isinstance(stored, StoredPart):
        return argument
    global _part
    latest = _part
    if latest is None or latest.name != stored.name:
        _part = latest = ray.get(stored.reference)
    return argument.with_(at_host=latest) if isinstance(argument, Inputs) else latest


@contextmanager
def ray_session(wait_seconds: float = 0.0) -> Iterator[None]:
    """Ray is there inside the block; it is ended afterwards only if it was started here.

    It is the one that this process has, the cluster at `RAY_ADDRESS`, or a new one on this machine.
    Ray's processes end with the thread that started them, so the block has to stay in one thread
    that lives as long.

    Args:
        wait_seconds: how long somebody else in this process may take to start Ray, as Flower does
            in a simulation at the same time as it starts the ServerApp; 0 where nobody will.

    Raises:
        TimeoutError: Ray did not come.
    """
    until = time.monotonic() + wait_seconds
    while not ray.is_initialized() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    if ray.is_initialized():
        yield
        return
    if wait_seconds > 0:
        raise TimeoutError(f"Ray, which the LLM's replicas need, was not up in {wait_seconds:g} s")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"  # and never one that Ray finds by itself
    # Ray starts as many idle workers as it has CPUs; replicas take none.
    own: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False} if address == "local" else {}
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    try:
        yield
    finally:
        ray.shutdown()


def start_replica(make: Callable[[], LLMService], num_gpus: float, folder: str) -> Any:
    """An actor that holds what `make` builds, and is started again by Ray whenever it is lost.

    Its class is sent by value and sets `sys.path` before anything of ours is imported: to this
    process's, where the app bundle of a run comes before what lies in Ray's working directory.

    Args:
        folder: for its temporary files, on this machine; on another they are in the usual place.
    """

    class LLMReplica:
        def __init__(self, path: list[str], made: bytes, folder: str) -> None:
            sys.path[:] = path + [entry for entry in sys.path if entry not in path]
            if os.path.isdir(folder):
                tempfile.tempdir = folder
            from fednano_flwr.llm.replica_actor import send_tensors_beside

            send_tensors_beside()
            self.process = os.urandom(8)
            self.service = pickle.loads(made)()

        @ray.method(max_task_retries=-1)  # answered whenever the replica is there
        def describe(self) -> tuple[bytes, LLMInfo]:
            return self.process, self.service.describe()

        def call(self, info: LLMInfo, name: str, *arguments: Any) -> Any:
            if (own := self.service.describe()) != info:
                from fednano_flwr.llm.replica_actor import OtherModelError

                raise OtherModelError(f"it is another model than the first one: {own}, not {info}")
            from fednano_flwr.llm.replica_actor import with_its_part

            return getattr(self.service, name)(*[with_its_part(one) for one in arguments])

        def close(self) -> None:
            getattr(self.service, "close", bool)()

    options: dict[str, Any] = dict(
        num_cpus=0,  # simulated clients have them all
        num_gpus=num_gpus,
        max_restarts=-1,
        max_concurrency=CONCURRENT_CALLS,
        scheduling_strategy="SPREAD",
    )
    path = [os.path.abspath(entry) for entry in sys.path]
    return ray.remote(**options)(LLMReplica).remote(path, pickle.dumps(make), folder)


def send_tensors_beside() -> None:
    """Let tensors that this process gives to Ray travel beside the pickle and not in it.

    PyTorch's own pickling copies a tensor several times over. They lose graph and device, and
    arrive in memory of their own that may be written.
    """
    ray.util.register_serializer(Tensor, serializer=_as_array, deserializer=_from_array)


def _as_array(value: Tensor) -> tuple[np.ndarray, torch.dtype, tuple[int, ...]]:
    flat = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
    return flat, value.dtype, tuple(value.shape)


def _from_array(sent: tuple[np.ndarray, torch.dtype, tuple[int, ...]]) -> Tensor:
    flat, dtype, shape = sent
    if not flat.size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(flat), dtype=dtype).reshape(shape)
