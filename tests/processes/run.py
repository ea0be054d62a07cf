"""Whole runs, clients and all, each in a process that a test may kill.

    python -m tests.processes.run

Reads a line `CONFIG RUN_ID LOG` for each: a JSON file of flat run-config keys, Flower's number of
the run, and where its output goes. The run's process is a fork of this one, which has imported
everything and started no thread. Prints its pid, then how it ended, as `os.waitpid` says it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import torch

from fednano_flwr import client_app, server_app
from fednano_flwr.config import RunConfig
from tests.local_grid import LocalGrid


def main() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        config, run_id, log = line.split()
        pid = os.fork()
        if pid == 0:
            run(Path(config), int(run_id), Path(log))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def run(config: Path, run_id: int, log: Path) -> None:
    with log.open("w") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    flat = json.loads(config.read_text())
    try:
        grid = LocalGrid(client_app.app, flat, 3, order=run_id, run_id=run_id)
        server_app.federate(grid, run_id, RunConfig.parse(flat))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
