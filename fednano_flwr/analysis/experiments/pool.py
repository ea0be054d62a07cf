"""Worker processes side by side, and which run goes to which."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.store import clear
from fednano_flwr.analysis.experiments.worker import CarryOut, Outcome, outcome_of, work
from fednano_flwr.base.signals import SIGNALS, no_interrupts
from fednano_flwr.base.version import commit_of
from fednano_flwr.config.project import PACKAGE

SCRATCH = ".scratch"
OnStart = Callable[[PlannedRun], None]
OnEnd = Callable[[PlannedRun, Outcome], None]


def run_all(
    runs: Sequence[PlannedRun],
    workers: int,
    out: Path,
    on_end: OnEnd,
    on_start: OnStart = lambda run: None,
    carry_out: CarryOut = outcome_of,
) -> None:
    """Do all runs; one that fails, or takes its process with it, does not end the others.

    However this ends, no process and no temporary file is left.

    Args:
        workers: processes at most.
        out: folder in which temporary files lie; no other comparison may use it.
        on_end: is called with every run that has ended.
        on_start: is called with every run that a worker was given.
        carry_out: does one run in a worker.

    Raises:
        OutputError: something foreign is where a run should go.
    """
    for run in runs:
        clear(run)
    pending = list(runs)
    scratch = out / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # of a comparison that was killed
    commit = commit_of(PACKAGE)
    busy: list[Worker] = []
    alive: list[Worker] = []
    try:
        for number in range(min(workers, len(pending))):
            worker = Worker(scratch / str(number), commit, carry_out)
            alive.append(worker)
            on_start(worker.give(_next(pending, busy, None)))
            busy.append(worker)
        while busy:
            ready = connection.wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                busy.remove(worker)
                run, outcome = worker.outcome()
                on_end(run, outcome)
                if not pending:
                    continue
                if not worker.process.is_alive():
                    worker = Worker(worker.scratch, commit, carry_out)
                    alive.append(worker)
                on_start(worker.give(_next(pending, busy, run.data)))
                busy.append(worker)
    finally:
        with no_interrupts():
            for worker in alive:
                worker.stop()
            shutil.rmtree(scratch, ignore_errors=True)


class Worker:
    """One process and our end of its pipe."""

    def __init__(self, scratch: Path, commit: str | None, carry_out: CarryOut) -> None:
        context = multiprocessing.get_context("spawn")
        self.scratch = scratch
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=work, args=(theirs, scratch, commit, carry_out), daemon=True
        )
        self.run: PlannedRun | None = None
        # The process inherits the mask: Ctrl-C in a terminal reaches it too, and is not for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, run: PlannedRun) -> PlannedRun:
        self.run = run
        with suppress(OSError):  # it died between two runs, and `outcome` says so
            self.pipe.send(run)
        return run

    def outcome(self) -> tuple[PlannedRun, Outcome]:
        """How the run that it was given ended; a process that died is a failed run."""
        assert self.run is not None
        try:
            return self.run, self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
            return self.run, Outcome(0.0, f"its process ended with {how}")

    def stop(self) -> None:
        self.process.kill()  # it holds nothing but what lies in its scratch folder
        self.process.join()
        self.pipe.close()


def _next(pending: list[PlannedRun], busy: Sequence[Worker], last: Any) -> PlannedRun:
    """Take the run that a worker does next: of the data it has, else of data that no other has."""
    others = {worker.run.data for worker in busy if worker.run is not None}
    same = (run for run in pending if run.data == last)
    free = (run for run in pending if run.data not in others)
    chosen = next(same, None) or next(free, None) or pending[0]
    pending.remove(chosen)
    return chosen
