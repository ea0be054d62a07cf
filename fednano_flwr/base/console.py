"""Lines for people, marked so that they can be found in Flower's log; tables as text."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.table import Table

# `fednano run` shows the lines with this mark and keeps the rest in its log.
MARK = "fednano | "
ALL_DONE = "all rounds are done"
"""Start of the reason of a run that failed although its results are complete."""


def say(text: str = "") -> None:
    """Print lines for people, each with the mark; never fails, as the work is worth more.

    Characters that the output's encoding lacks are replaced.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for line in text.splitlines() or [""]:
        printable = f"{MARK}{line}\n".encode(encoding, errors="replace").decode(encoding)
        with suppress(OSError, ValueError, AttributeError):  # a full disk, closed, none at all
            sys.stdout.write(printable)  # one write: another thread's text cannot come between
            sys.stdout.flush()


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = 110
) -> str:
    """A small table as text, of at most `width` characters a line; brackets stay what they are."""
    drawn = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    out = io.StringIO()
    plain = Console(file=out, width=width, color_system=None, markup=False, emoji=False)
    plain.print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def human_bytes(count: float) -> str:
    """`1536` → `1.5 kB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
