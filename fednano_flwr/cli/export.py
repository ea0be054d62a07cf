"""`fednano export`: a run's adapters, or its model with the adapters merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer

from fednano_flwr.cli.options import NewFolder, RunModel, StoredAs, Which, writing

command = typer.Typer()


@command.command(
    epilog="Example: fednano export runs/demo --format merged --out tuned. "
    "What each format holds: docs/export.md."
)
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            click_type=click.Choice(("peft", "merged")),
            help="peft: the adapters; merged: the model with them.",
        ),
    ],
    out: NewFolder,
    which: Which = "best",
    model: RunModel = "",
    dtype: StoredAs = None,
) -> None:
    """Write a run's result to a folder, with a model card.

    peft is the adapters in PEFT's layout. merged is a checkpoint of the model's own class that has
    them in its weights and that plain transformers loads.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if run and model cannot be used and 130
    if it was interrupted; where it is not 0, nothing is left behind.
    """
    from fednano_flwr.export.command import export as write

    with writing(out):
        typer.echo(write(run.expanduser(), form, which, out.expanduser(), model, dtype))
