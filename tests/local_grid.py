"""A grid in this process: nodes answer at once, in any order a test asks for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid(Grid):
    """Runs a real ClientApp for every message.

    Args:
        run_config: flat keys, as Flower hands them to the apps.
        clients: number of nodes and partitions.
        order: seeds node ids and the order of replies.
        gone: partitions whose node never answers.
        leaves: after so many messages no node is connected any more.
        node_config: of a partition's node, instead of its partition-id and num-partitions.
    """

    def __init__(
        self,
        app: ClientApp,
        run_config: Mapping[str, Any],
        clients: int,
        order: int = 0,
        gone: Iterable[int] = (),
        leaves: int | None = None,
        node_config: Callable[[int], dict[str, str]] | None = None,
    ) -> None:
        self._app = app
        self._config = dict(run_config)
        self._clients = clients
        self._random = random.Random(order)
        self._gone = set(gone)
        self._messages_left = leaves
        self._node_config = node_config
        self.nodes = {
            node: partition
            for partition, node in enumerate(self._random.sample(range(1, 2**40), clients))
        }
        self._replies: list[Message] = []
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def get_node_ids(self) -> Iterable[int]:
        if self._messages_left == 0:
            return []
        return self._random.sample(list(self.nodes), len(self.nodes))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            # What the SuperLink does on arrival.
            message.metadata.__dict__["_message_id"] = f"m{self._random.getrandbits(60)}"
            ids.append(message.metadata.message_id)
            if self._messages_left:
                self._messages_left -= 1
            partition = self.nodes[message.metadata.dst_node_id]
            if partition not in self._gone:
                self._replies.append(self._app(message, self._context(message, partition)))
        self._random.shuffle(self._replies)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        ready = [r for r in self._replies if r.metadata.reply_to_message_id in wanted][:2]
        self._replies = [reply for reply in self._replies if reply not in ready]
        return ready

    def _context(self, message: Message, partition: int) -> Context:
        node_config: dict[str, Any] = {"partition-id": partition, "num-partitions": self._clients}
        if self._node_config is not None:
            node_config = {**self._node_config(partition)}
        return Context(
            run_id=1,
            node_id=message.metadata.dst_node_id,
            node_config=node_config,
            state=RecordDict(),
            run_config=self._config,
        )

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Any:
        raise NotImplementedError
