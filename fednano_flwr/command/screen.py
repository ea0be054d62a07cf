"""Lines for people among everything that a run prints."""

from __future__ import annotations

import re
from types import TracebackType

import typer
from rich.console import Console
from rich.status import Status

from fednano_flwr.console import MARK

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Flower's logger puts "INFO :      " first; a simulated client's lines begin with "(ClientApp…" and
# are not the ServerApp's.
_LEVEL = r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[^|(]*:\s+)?"
_SAID = re.compile(_LEVEL + re.escape(MARK.rstrip()) + r" ?(.*)")


def said(line: str) -> str | None:
    """The text of a line that the ServerApp printed for people, None for any other line."""
    match = _SAID.fullmatch(_COLOUR.sub("", line))
    return match[1] if match else None


class Screen:
    """Shows the run's lines as they come, and until the first one that Flower is starting.

    Lines are written as they are: neither wrapped nor read as rich's markup.
    """

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self._status: Status | None = None

    def __enter__(self) -> Screen:
        console = Console()
        if self.verbose or not console.is_terminal:
            typer.echo("starting Flower ...")
        else:
            self._status = console.status("starting Flower ...")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_status()

    def show(self, line: str) -> None:
        """Show a line of the run's output if it is for people, or any with `verbose`."""
        text = line if self.verbose else said(line)
        if text is not None:
            self._stop_status()
            typer.echo(text)

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
