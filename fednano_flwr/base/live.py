"""Progress lines at the bottom of the terminal, below the lines that scroll.

with Live(draw) as live:
    live.say("a line that stays")
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import rich.live
import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fednano_flwr.base.signals import no_interrupts

PER_SECOND = 4
WIDEST_BAR, NARROWEST_BAR = 40, 4
BETWEEN = " · "


def terminal() -> Console | None:
    """The terminal that standard output is, if lines on it can be drawn again; else None.

    `FORCE_COLOR`, which CI sets for logs, makes no terminal of a pipe.
    """
    console = Console(force_terminal=sys.stdout.isatty())
    return console if console.is_terminal and not console.is_dumb_terminal else None


class Live:
    """Redraws progress below printed lines; without a terminal it only prints.

    Printed lines are neither wrapped nor read as rich's markup. When the block ends in any way, the
    drawing is removed and the cursor is back.

    Args:
        draw: what to show now, each line within so many columns; called from a thread.
        console: where to; None draws nothing.
        say: says a line where nothing is drawn.
    """

    def __init__(
        self,
        draw: Callable[[int], RenderableType],
        console: Console | None,
        say: Callable[[str], None] = typer.echo,
    ) -> None:
        self.console = console
        self._say = say
        self._draw = draw
        self._live: rich.live.Live | None = None

    def __enter__(self) -> Live:
        if (console := self.console) is not None:
            self._live = rich.live.Live(
                console=console,
                get_renderable=lambda: self._draw(console.width),
                refresh_per_second=PER_SECOND,
                transient=True,
            )
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            with no_interrupts():
                self._live.stop()

    def refresh(self) -> None:
        """Draw now."""
        if self._live is not None:
            self._live.refresh()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        if self.console:
            self.console.out(text, highlight=False)
        else:
            self._say(text)


def bar_line(before: str, done: int, total: int, after: str, width: int) -> RenderableType:
    """A bar between two texts, in one line of at most `width` columns; narrow ones have no bar."""
    texts = [text for text in (before, after) if text]
    room = width - sum(cell_len(text) + 2 for text in texts)
    if room < NARROWEST_BAR:
        return one_line("  ".join(texts))
    line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    bar = ProgressBar(max(total, 1), done, width=min(room, WIDEST_BAR))
    line.add_row(*map(one_line, [before] if before else []), bar, one_line(after))
    return line


def fitting(parts: Sequence[str], width: int) -> Text:
    """As many of these parts, the most important first, as one line of `width` columns holds."""
    kept = [part for part in parts if part]
    while len(kept) > 1 and cell_len(BETWEEN.join(kept)) > width:
        kept.pop()
    return one_line(BETWEEN.join(kept))


def one_line(text: str) -> Text:
    """Text that is cut where the line ends."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def clock_time(seconds: float) -> str:
    """`75` → `1:15`, `3675` → `1:01:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
