"""An LLM host as a process of its own: `python -m tests.processes.host MODEL PORT VICTIM`.

Prints its address, then a line as each step begins. SIGUSR1 empties its feature store. Steps of the
owner VICTIM take half a second, so that one can be killed in the middle.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import torch

from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import load_llm_half


class Telling(FrozenLLM):
    """Says whose step begins."""

    victim = b""

    def serve(self, samples: Any) -> None:
        owner = samples[0].job.owner
        if samples[0].job.trains:
            print("step of", owner.decode(), flush=True)
        if owner == self.victim:
            time.sleep(0.5)
        super().serve(samples)


def main() -> None:
    torch.set_num_threads(1)
    model, port, victim = sys.argv[1:]
    host = Telling(load_llm_half(model))
    host.victim = victim.encode()
    signal.signal(signal.SIGUSR1, lambda *_: host.features.close())
    with QueuedLLM(host) as queued, serve(queued, port=int(port)) as address:
        print(address, flush=True)
        signal.pause()
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
