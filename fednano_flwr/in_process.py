"""A whole run in one process: the same apps, strategy and exchange, without Flower's processes.

    folder = run_in_process(config, clients=5)

Clients answer one after another where they are asked, so the result is that of `flwr run` to the
last bit, without its start and its waiting; what a client process keeps from one message to the
next (model, shards, features) is kept from one run to the next as well. Client, look-ahead and
LLM host have a thread of computation each and much of the time wait for one another: many small
runs go side by side in processes of their own (`fednano compare`).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fednano_flwr import client_app, server_app
from fednano_flwr.config import RunConfig
from fednano_flwr.data.shard import read_shards
from fednano_flwr.edge.process_cache import keep_clients
from fednano_flwr.preflight import check_all, client_checks, client_files, validate_number
from fednano_flwr.rounds.compat import give_id, identify
from fednano_flwr.runs.folder import RunFolder

_under_way = threading.Lock()


def run_in_process(config: RunConfig, clients: int) -> RunFolder:
    """Run a federation here and return its folder; one at a time in a process.

    Raises:
        RuntimeError: another one is under way in this process.
        ConfigError, ResourceError, DataError: model or data are not as the config says.
        TooFewClientsError: too few clients could go on.
        LostClientsError: all rounds are done and written, and a client took no part in any.
    """
    if not _under_way.acquire(blocking=False):
        raise RuntimeError(
            "another run_in_process is under way in this process, and Flower's messages know one "
            "run a process: start this one after it, or in a process of its own"
        )
    try:
        validate_number(config, clients)
        check_all([*client_checks(config), *client_files(config)])
        keep_clients(clients)
        read_shards(config.dataset, config.seed, clients)
        run_id = secrets.randbits(62) + 1
        grid = InProcessGrid(client_app.app, config.flat(), clients, run_id)
        folder = server_app.federate(grid, run_id, config)
    finally:
        _under_way.release()
    server_app.check_clients(folder)
    return folder


class InProcessGrid(Grid):
    """Runs a ClientApp for every message, at once and in this process.

    Args:
        app: the clients' app.
        run_config: flat keys, as Flower hands them to the apps.
        clients: number of nodes and partitions.
    """

    def __init__(
        self, app: ClientApp, run_config: Mapping[str, Any], clients: int, run_id: int = 1
    ) -> None:
        self._app = app
        self._config = dict(run_config)
        self._clients = clients
        self._run_id = run_id
        self.nodes = {partition + 1: partition for partition in range(clients)}
        self._replies: list[Message] = []
        identify(run_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(give_id(message))
            self._replies += self.answer(message)
        return ids

    def answer(self, message: Message) -> list[Message]:
        """The node's reply; none where it does not answer."""
        partition = self.nodes[message.metadata.dst_node_id]
        context = Context(
            run_id=self._run_id,
            node_id=message.metadata.dst_node_id,
            node_config=self.node_config(partition),
            state=RecordDict(),
            run_config=self._config,
        )
        return [self._app(message, context)]

    def node_config(self, partition: int) -> dict[str, Any]:
        """What a node knows of itself."""
        return {"partition-id": partition, "num-partitions": self._clients}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        ready = [r for r in self._replies if r.metadata.reply_to_message_id in wanted]
        self._replies = [reply for reply in self._replies if reply not in ready]
        return ready

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Any:
        raise NotImplementedError
