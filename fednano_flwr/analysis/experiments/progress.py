"""What a comparison says while its runs last; on a terminal also how many have ended."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Container, Mapping, Sequence

from rich.console import Console, Group, RenderableType

from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.analysis.experiments.worker import Outcome
from fednano_flwr.base.live import Live, bar_line, clock_time, one_line
from fednano_flwr.runs.results import Run
from fednano_flwr.runs.summary import percent


class Progress:
    """A bar of runs below the lines that are said; without a terminal only these.

    Args:
        total: runs of the whole comparison.
        ended: of them, before the first of these starts.
        left: seconds that the others will take; None where nobody knows.
        say: says a line where there is no terminal.
        console: the terminal; None where there is none.
    """

    def __init__(
        self,
        total: int,
        ended: int,
        left: float | None,
        say: Callable[[str], None],
        console: Console | None,
    ) -> None:
        self._total, self._ended = total, ended
        self._began = self._estimated = time.monotonic()
        self._left = left
        self._running: list[PlannedRun] = []
        self._live = Live(self._draw, console, say)

    def __enter__(self) -> Progress:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)

    def started(self, run: PlannedRun) -> None:
        self._running = [*self._running, run]  # a new list: the old one may be being drawn

    def ended(self, run: PlannedRun, line: str, left: float | None) -> None:
        """A run has ended: say the line; `left` is as for the class."""
        self._running = [other for other in self._running if other != run]
        self._ended += 1
        self._left, self._estimated = left, time.monotonic()
        self._live.say(line)

    def _draw(self, width: int) -> RenderableType:
        now = time.monotonic()
        after = f"{self._ended} of {self._total} runs  {clock_time(now - self._began)}"
        if self._left is not None:
            left = max(0.0, self._left - (now - self._estimated))
            after += f", about {clock_time(left)} left"
        lines = [bar_line("", self._ended, self._total, after, width)]
        if self._running:
            names = ", ".join(str(run).replace("  ", " ") for run in self._running)
            lines.append(one_line(f"running: {names}"))
        return Group(*lines)


def end_line(number: int, total: int, run: PlannedRun, outcome: Outcome, done: Run | None) -> str:
    """`[12/70] fedavg  alpha=0.1 seed 3: 61.9 → 89.7 % (54 s)`."""
    head = f"[{number}/{total}] {run}: "
    if done is None:
        return f"{head}failed: {outcome.error} (log: {run.log})"
    first, last = (percent(done.rounds[number]["accuracy"]) for number in (0, -1))
    return f"{head}{first.removesuffix(' %')} → {last} ({outcome.seconds:.0f} s)"


def seconds_left(
    left: Sequence[PlannedRun], seconds: Mapping[PlannedRun, float], workers: int
) -> float | None:
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


def plan_lines(runs: Sequence[PlannedRun], finished: Container[PlannedRun]) -> list[str]:
    """One line a run, with which are finished already."""
    return [f"{'finished' if run in finished else 'to do':<9} {run}  {run.folder}" for run in runs]
