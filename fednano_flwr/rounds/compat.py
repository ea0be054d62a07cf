"""The only file that imports names beyond Flower's public API.

`PRIVATE` lists them, each with its use. pyproject.toml ends Flower's range before the
first version that was not run.
"""

from __future__ import annotations

import functools
import secrets
import sys
from collections.abc import Iterable
from typing import Any

import httpx
from flwr.app import Message
from flwr.common.config import parse_config_args
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM, KEY_NORM_BIT
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["KEY_CLIPPING_NORM", "KEY_NORM_BIT", "parse_config_args"]
PRIVATE = {
    "flwr.common.config.parse_config_args": "doctor reads a node config as a SuperNode does",
    "flwr.common.constant.ErrorCode": "tells a dead worker from a client that failed",
    "flwr.supercore.differential_privacy.KEY_CLIPPING_NORM": "key of the clip norm in a message",
    "flwr.supercore.differential_privacy.KEY_NORM_BIT": "key of whether a client clipped",
    "flwr.supercore.task_identity.TaskIdentity": "identity of a run in one process",
    "flwr.superlink.grid.http_grid.HttpGrid": "a deployment's replies are fetched one by one",
    "flwr.superlink.grid.inmemory_grid.InMemoryGrid": "a simulation's clients are on this machine",
    "flwr.simulation.ray_transport.ray_actor.BasicActorPool": "dead workers are replaced",
    "flwr.app.Metadata._message_id": "id of a message in one process",
}


def is_simulation(grid: Grid) -> bool:
    """Whether Flower's simulation runs the clients, on this machine."""
    from flwr.superlink.grid.inmemory_grid import InMemoryGrid  # half a second, for servers alone

    return isinstance(grid, InMemoryGrid)


def is_deployment(grid: Grid) -> bool:
    """Whether a SuperLink stands between server and clients, which may be on other machines."""
    from flwr.superlink.grid.http_grid import HttpGrid

    return isinstance(grid, HttpGrid)


def pull(grid: Grid, message_ids: Iterable[str]) -> tuple[dict[str, Message], dict[str, str]]:
    """Fetch replies one by one, so that a corrupt one fails only its sender.

    A SuperLink returns a reply once; a corrupt one raises and loses all that was fetched with it.
    A reply belongs to the message whose id was requested, whatever id its node wrote into it.
    In a simulation replies are in memory and cannot be corrupt.

    Returns:
        By the id of the message: the replies that are there, and why one cannot be read.

    Raises:
        httpx.HTTPError: the SuperLink does not answer, or not to this run any more.
    """
    if not is_deployment(grid):
        found = grid.pull_messages(list(message_ids))
        return {reply.metadata.reply_to_message_id: reply for reply in found}, {}
    replies: dict[str, Message] = {}
    unreadable: dict[str, str] = {}
    for message_id in message_ids:
        try:
            for reply in grid.pull_messages([message_id]):
                replies[message_id] = reply
        except httpx.HTTPError:
            raise
        except Exception as error:  # whatever a node sent in place of a reply
            unreadable[message_id] = f"its reply cannot be read: {type(error).__name__}: {error}"
    return replies, unreadable


def identify(run_id: int) -> None:
    """Set the run id of this process, which messages need."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1


def give_id(message: Message) -> str:
    """Give a message an id, as a SuperLink does on its arrival."""
    message.metadata.__dict__["_message_id"] = secrets.token_hex(16)
    return message.metadata.message_id


def worker_died(reply: Message) -> bool:
    """Whether an error reply of a simulated client comes from a dead worker."""
    return bool(reply.has_error() and reply.error.code == ErrorCode.UNKNOWN)


def replace_dead_workers() -> None:
    """Make Flower's actor pools in this process replace dead workers.

    Flower returns a dead Ray worker to the idle ones. It fails every message at once and is idle
    again, so it gets the next client's message, and most clients of a round fail.
    """
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
