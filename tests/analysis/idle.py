"""A worker that runs nothing, imported by processes of its own: it has to be light."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from fednano_flwr.analysis.experiments.worker import CarryOut, Outcome


def work(pipe: Connection, scratch: Path, commit: str | None, carry_out: CarryOut) -> None:
    """Writes down what it is given; seed 7 takes its process with it, seed 9 takes long."""
    scratch.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            run = pipe.recv()
        except EOFError:
            return
        run.log.write_text(f"{os.getpid()} {commit}")
        if run.seed == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.seed == 9:
            time.sleep(60)
        pipe.send(Outcome(0.5))
