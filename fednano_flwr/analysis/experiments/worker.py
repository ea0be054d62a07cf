"""A process that does one run after another and keeps the client's half of the model meanwhile."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from fednano_flwr.analysis.experiments.plan import PlannedRun


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its seconds, start and end included, and why it failed where it did."""

    seconds: float
    error: str | None = None


CarryOut = Callable[[PlannedRun, Path], Outcome]
"""Does one run, with a folder for temporary files."""


def work(pipe: Connection, scratch: Path, commit: str | None, carry_out: CarryOut) -> None:
    """Take runs from the pipe until it is closed, answering each with an `Outcome`.

    Args:
        scratch: folder for temporary files, removed by whoever started this process.
        commit: what runs note as theirs, as it was when the comparison began.
    """
    _die_with_parent()
    scratch.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(scratch)
    if commit:
        os.environ["FEDNANO_COMMIT"] = commit
    while True:
        try:
            run: PlannedRun = pipe.recv()
        except EOFError:
            return
        with _output_to(run.log):
            outcome = carry_out(run, scratch)
        pipe.send(outcome)


def outcome_of(run: PlannedRun, scratch: Path) -> Outcome:
    """Do one run in this process.

    Args:
        scratch: folder for what its clients keep to themselves, which is removed with it.
    """
    # Imported here: what they have to say goes to the log, and their seconds are no run's.
    import torch

    from fednano_flwr.in_process import run_in_process

    torch.set_num_threads(1)
    started = time.perf_counter()
    # One folder for all runs of this process: what clients share is kept by the edge's settings.
    states = scratch / "clients"
    edge = dataclasses.replace(run.config.edge, state_dir=str(states))
    error = None
    try:
        run_in_process(dataclasses.replace(run.config, edge=edge), run.clients)
    except Exception as failure:
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}"
    shutil.rmtree(states, ignore_errors=True)
    return Outcome(time.perf_counter() - started, error)


@contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Everything that this process prints, also past Python, goes to the file."""
    with file.open("w", encoding="utf-8") as log:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(log.fileno(), number)
        yield
        sys.stdout.flush()
        sys.stderr.flush()


def _die_with_parent() -> None:
    """Ctrl-C is the parent's to hear; if it dies without a word, so does this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
