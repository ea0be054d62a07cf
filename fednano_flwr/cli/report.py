"""`fednano report`: pages and figures of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.cli.options import exit_status, notice

command = typer.Typer()


@command.command(
    epilog="Example: fednano report runs/demo; fednano report runs/a runs/b --out comparison. "
    "How to read it: docs/report.md."
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write; else the folder report in the run's."),
    ] = None,
) -> None:
    """Write a report of each run, a page with figures, and of several runs a comparison.

    FOLDER/report.html opens in any browser, without a network; FOLDER/figures has its figures as
    SVG and PNG. An earlier report there is replaced.

    Exits with 0 if it is written, 1 if writing failed, 2 if one of the runs cannot be read (nothing
    is written then) and 130 if it was interrupted.
    """
    from fednano_flwr.analysis.report import report as write

    interrupted = "interrupted; the same command writes the report anew"
    with exit_status("the report cannot be written", interrupted):
        for file in write(runs, out.expanduser() if out else None, notice):
            typer.echo(f"written to {file}")
