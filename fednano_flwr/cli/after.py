"""Commands on runs that were made: look at one, take it away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.base.signals import interrupts
from fednano_flwr.cli.options import (
    FAILED,
    INTERRUPTED,
    USAGE,
    check_dtype,
    notice,
    writing,
)
from fednano_flwr.config import ConfigError

commands = typer.Typer()


@commands.command(
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
    from fednano_flwr.analysis.report.command import report as write

    try:
        with interrupts():
            for file in write(runs, out.expanduser() if out else None, notice):
                typer.echo(f"written to {file}")
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except OSError as error:
        typer.echo(f"error: the report cannot be written: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command writes the report anew", err=True)
        raise typer.Exit(INTERRUPTED) from None


@commands.command(
    epilog="Example: fednano export runs/demo --format merged --out tuned. "
    "What each format holds: docs/export.md."
)
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    form: Annotated[
        str, typer.Option("--format", help="peft: the adapters; merged: the model with them.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    which: Annotated[str, typer.Option(help="Adapters of the best or the last round.")] = "best",
    model: Annotated[
        str, typer.Option(help="The run's model, where its config names another place.")
    ] = "",
    dtype: Annotated[
        str | None,
        typer.Option(help="Store weights as float32, bfloat16 or float16; else as they are."),
    ] = None,
) -> None:
    """Take the result of a run away, with a model card.

    peft is the adapters in PEFT's layout. merged is a checkpoint of the model's own class that has
    them in its weights and that plain transformers loads.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if run and model cannot be used and 130
    if it was interrupted; where it is not 0, nothing is left behind.
    """
    from fednano_flwr.export.command import export as write

    check_dtype(dtype)
    with writing(out):
        typer.echo(write(run.expanduser(), form, which, out.expanduser(), model, dtype))
