"""A grid in this process: nodes answer in any order that a test asks for, or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from fednano_flwr.in_process import InProcessGrid
from fednano_flwr.rounds import federation

federation.POLL_SECONDS = 0.01  # replies are there at once


class LocalGrid(InProcessGrid):
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
        run_id: int = 1,
    ) -> None:
        super().__init__(app, run_config, clients, run_id)
        self._random = random.Random(order)
        self._gone = set(gone)
        self._messages_left = leaves
        self._node_config = node_config
        self.nodes = {
            node: partition
            for partition, node in enumerate(self._random.sample(range(1, 2**40), clients))
        }

    def get_node_ids(self) -> Iterable[int]:
        if self._messages_left == 0:
            return []
        return self._random.sample(list(self.nodes), len(self.nodes))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = super().push_messages(messages)
        self._random.shuffle(self._replies)
        return ids

    def answer(self, message: Message) -> list[Message]:
        if self._messages_left:
            self._messages_left -= 1
        gone = self.nodes[message.metadata.dst_node_id] in self._gone
        return [] if gone else super().answer(message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = list(super().pull_messages(message_ids))
        self._replies += ready[2:]  # never more than two at once
        return ready[:2]

    def node_config(self, partition: int) -> dict[str, Any]:
        if self._node_config is not None:
            return {**self._node_config(partition)}
        return super().node_config(partition)
