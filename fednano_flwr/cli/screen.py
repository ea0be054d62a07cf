"""Shows a run's lines for people and, on a terminal, its progress below them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.spinner import Spinner

from fednano_flwr.base.console import MARK
from fednano_flwr.base.live import Live, bar_line, clock_time, fitting, one_line
from fednano_flwr.rounds import snapshot
from fednano_flwr.rounds.snapshot import Snapshot

CHECKING, STARTING = "checking the run ...", "starting Flower ..."
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Flower's logger puts "INFO :      " first; a simulated client's lines begin with "(ClientApp…" and
# are not the ServerApp's.
_LEVEL = r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[^|(]*:\s+)?"
_MARKED = re.compile(_LEVEL + re.escape(MARK.rstrip()) + r" ?(.*)")


def marked_text(line: str) -> str | None:
    """The text of a line that the ServerApp marked for people; None for any other line."""
    match = _MARKED.fullmatch(_COLOUR.sub("", line))
    return match[1] if match else None


class Screen:
    """Prints the run's lines; on a terminal it draws the progress below them.

    Args:
        verbose: show every line that Flower prints, and nothing below them.
        console: the terminal; None where there is none.
    """

    def __init__(self, verbose: bool, console: Console | None = None) -> None:
        self.verbose = verbose
        self._live = Live(self._draw, None if verbose else console)
        self._spinner: Spinner | None = Spinner("dots", CHECKING)
        self._file: Path | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Screen:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)

    def starting(self) -> None:
        """Show that Flower starts, after the checks."""
        if self._live.console is None:
            self._live.say(STARTING)
        else:
            self._spinner = Spinner("dots", STARTING)

    def show(self, line: str) -> None:
        """Show a line of the run's output if it is for people, or any with `verbose`."""
        text = line if self.verbose else marked_text(line)
        if text is not None:
            if self._spinner is not None:
                self._spinner = None
                self._live.refresh()
            self._live.say(text)

    @property
    def watch(self) -> Callable[[Path], None] | None:
        """Sets the file of the run's progress; None if no progress is drawn."""
        return None if self._live.console is None else self._watch

    def _watch(self, file: Path) -> None:
        self._file = file

    def _draw(self, width: int) -> RenderableType:
        if self._spinner is not None:
            return self._spinner
        found = snapshot.read(self._file) if self._file is not None else None
        if found is None:
            return Group()
        return view(found, time.monotonic() - self._began, width)


def view(found: Snapshot, elapsed: float, width: int) -> Group:
    """The progress in two lines of at most `width` columns; a third names silent clients.

    Args:
        elapsed: seconds since the command began.
    """
    where = found.phase
    if found.round is not None:
        where = f"round {found.round} of {found.rounds}  {found.phase}"
    left = "" if found.left is None else f", about {clock_time(found.left)} left"
    parts = [clock_time(elapsed) + left, found.pace, _accuracy(found)]
    parts += [_loss("loss", found.loss), _loss("test loss", found.test_loss)]
    ended = found.done + found.failed
    lines = [
        bar_line(where, ended, found.asked, found.clients(), width),
        fitting(parts, width),
        *([one_line(found.waiting)] if found.waiting else []),
    ]
    return Group(*lines)


def _accuracy(found: Snapshot) -> str:
    if found.accuracy is None:
        return ""
    of = "so far" if found.so_far else "last round"
    return f"{found.label} {100 * found.accuracy:.1f} % ({of})"


def _loss(name: str, loss: float | None) -> str:
    return "" if loss is None else f"{name} {loss:.3f}"
