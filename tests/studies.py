"""What the tests of studies share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.store import clear
from fednano_flwr.analysis.experiments.worker import Outcome


def here(
    runs: list[PlannedRun],
    workers: int,
    scratch: Path,
    on_end: Callable[[PlannedRun, Outcome], None],
    carry_out: Callable[[PlannedRun, Path], Outcome],
) -> None:
    """As `run_all`, in this process."""
    threads = torch.get_num_threads()
    for run in runs:
        clear(run)
        on_end(run, carry_out(run, scratch))
    torch.set_num_threads(threads)
