"""A client that trains for ever: `python -m tests.processes.client CONFIG ADDRESS PARTITION NODE`.

CONFIG is a JSON file of flat run-config keys.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fednano_flwr.adapters.site import adapter_state
from fednano_flwr.config import RunConfig
from fednano_flwr.edge.client import Client
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.shard import ClientSpec
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM


def main() -> None:
    file, address, partition, node = sys.argv[1:]
    config = RunConfig.parse(json.loads(Path(file).read_text()))
    client = Client(config, ClientSpec(int(partition), 3))
    theta = adapter_state(client.edge.adapters)
    with RemoteLLM(address, Caller(run=1, node=int(node))) as remote:
        while True:
            client.train(theta, remote, 1, LocalWork())


if __name__ == "__main__":
    main()
