"""What a comparison says while it runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from fednano_flwr.analysis.experiments.plan import Run
from fednano_flwr.analysis.experiments.store import Finished
from fednano_flwr.analysis.experiments.worker import Outcome


def end_line(number: int, total: int, run: Run, outcome: Outcome, done: Finished | None) -> str:
    """`[12/70] fedavg  alpha=0.1 seed 3: 61.9 → 89.7 % (54 s)`."""
    head = f"[{number}/{total}] {run}: "
    if done is None:
        return f"{head}failed: {outcome.error} (log: {run.log})"
    first, last = (record["accuracy"] for record in (done.records[0], done.records[-1]))
    gain = f"{_percent(first)} → {_percent(last)} %"
    return f"{head}{gain} ({outcome.seconds:.0f} s)"


def seconds_left(left: Sequence[Run], seconds: Mapping[Run, float], workers: int) -> float | None:
    """What the runs left will take, each as long as its experiment's others, else as all others.

    Args:
        seconds: of the runs that are done; None is the answer where there are none.
    """
    if not seconds:
        return None
    of_all = statistics.fmean(seconds.values())
    by_name: dict[str, list[float]] = {}
    for run, value in seconds.items():
        by_name.setdefault(run.experiment, []).append(value)
    each = {name: statistics.fmean(values) for name, values in by_name.items()}
    return sum(each.get(run.experiment, of_all) for run in left) / max(1, min(workers, len(left)))


def duration(seconds: float | None) -> str:
    """In words: `about 12 min`."""
    if seconds is None:
        return "an unknown time: no run has finished yet"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def plan_lines(runs: Sequence[Run], finished: Mapping[Run, Finished]) -> list[str]:
    """One line a run, with which are finished already."""
    return [f"{'finished' if run in finished else 'to do':<9} {run}  {run.folder}" for run in runs]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
