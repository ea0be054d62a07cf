"""Flower's simulation: a worker that dies is replaced.

Flower keeps a dead Ray worker among the idle ones. It fails every message at once, so it is idle
again at once and is given the next client's, and most clients of a round fail at one worker.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from flwr.app import Message
from flwr.common.constant import ErrorCode


def worker_died(reply: Message) -> bool:
    """Whether a simulated client did not fail by itself, but with the worker that it ran in."""
    return bool(reply.has_error() and reply.error.code == ErrorCode.UNKNOWN)


def replace_dead_workers() -> None:
    """From now on Flower's pools in this process take a new worker in place of a dead one."""
    import ray  # only a simulation needs it
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool
    from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

    give_back = BasicActorPool.add_actor_back_to_pool
    if hasattr(give_back, "__wrapped__"):
        return

    @functools.wraps(give_back)
    def give_back_alive(self: BasicActorPool, future: Any) -> None:
        # Flower gives a worker back while it handles the error that its answer raised.
        if isinstance(sys.exception(), RayActorError | WorkerCrashedError | OutOfMemoryError):
            dead: Any = self._future_to_actor[future]
            ray.kill(dead)
            self._future_to_actor[future] = self.create_actor_fn()
        give_back(self, future)

    BasicActorPool.add_actor_back_to_pool = give_back_alive  # type: ignore[method-assign]
