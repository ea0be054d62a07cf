"""What a comparison shows while its runs last, on a terminal: how many have ended, which are on."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType

from fednano_flwr.analysis.experiments.plan import Run
from fednano_flwr.base.live import Live, bar_line, clock_time, one_line


class Board:
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
        self._began = self._reckoned = time.monotonic()
        self._left = left
        self._running: list[Run] = []
        self._live = Live(self._draw, console, say)

    def __enter__(self) -> Board:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)

    def started(self, run: Run) -> None:
        self._running = [*self._running, run]  # a new list: the old one may be being drawn

    def over(self, run: Run, line: str, left: float | None) -> None:
        """A run has ended: say the line; `left` is as for the class."""
        self._running = [other for other in self._running if other != run]
        self._ended += 1
        self._left, self._reckoned = left, time.monotonic()
        self._live.say(line)

    def _draw(self, width: int) -> RenderableType:
        now = time.monotonic()
        after = f"{self._ended} of {self._total} runs  {clock_time(now - self._began)}"
        if self._left is not None:
            left = max(0.0, self._left - (now - self._reckoned))
            after += f", about {clock_time(left)} left"
        running = ", ".join(str(run).replace("  ", " ") for run in self._running)
        lines = [bar_line("", self._ended, self._total, after, width)]
        return Group(*lines, *([one_line(f"running: {running}")] if running else []))
