"""Clients in processes of their own that live as long as the run, and the server's way to them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from flwr.app import Message, MessageType

from benchmarks.soak.census import census
from fednano_flwr import client_app
from fednano_flwr.in_process import InProcessGrid


def serve_messages(pipe: Connection, run_config: Mapping[str, Any], clients: int) -> None:
    """A client process: replies to each message; to None, what the process holds."""
    torch.set_num_threads(1)
    grid = InProcessGrid(client_app.app, run_config, clients)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send(census() if asked is None else grid.answer(asked))


class PipeGrid(InProcessGrid):
    """A node for each pipe, behind which a client process waits.

    Args:
        before_training: called as each round's training begins, when everybody is idle.
    """

    def __init__(
        self,
        run_config: Mapping[str, Any],
        pipes: Sequence[Connection],
        before_training: Callable[[], None],
    ) -> None:
        super().__init__(client_app.app, run_config, len(pipes))
        self._pipes = pipes
        self._busy: list[Connection] = []
        self._before_training = before_training

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        if sent[0].metadata.message_type == MessageType.TRAIN:
            self._before_training()
        for message in sent:
            message.metadata.__dict__["_message_id"] = secrets.token_hex(16)
            pipe = self._pipes[self.nodes[message.metadata.dst_node_id]]
            pipe.send(message)
            self._busy.append(pipe)
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for pipe in wait(self._busy, timeout=1.0):
            assert isinstance(pipe, Connection)
            self._busy.remove(pipe)
            self._replies += pipe.recv()
        return super().pull_messages(message_ids)
