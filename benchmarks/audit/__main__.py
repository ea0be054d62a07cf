"""python -m benchmarks.audit RUN...: attack one's own runs as their LLM host could."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.audit.command import audit as carry_out
from benchmarks.audit.command import show
from benchmarks.audit.results import AuditOptions
from fednano_flwr.base.resources import ResourceError
from fednano_flwr.base.signals import interrupts
from fednano_flwr.cli.options import FAILED, INTERRUPTED, USAGE, App
from fednano_flwr.config import ConfigError
from fednano_flwr.data.errors import DataError

cli = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@cli.command(
    epilog="Example: python -m benchmarks.audit runs/lowrank runs/embeddings --questions 200. "
    "What the numbers are: docs/audit.md."
)
def audit(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|FILE.toml...", help="Folders of runs, or configs."),
    ],
    questions: Annotated[
        int, typer.Option(min=1, help="Training questions to play, over all clients.")
    ] = 200,
    observations: Annotated[
        int,
        typer.Option(min=0, help="How often each is seen; 0: as often as the run sends it."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which questions are played.")] = 0,
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients of a FILE.toml.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the JSON object here, too.")
    ] = None,
    app: App = None,
) -> None:
    """Attack one's own runs: how much of the clients' text could their LLM host read?

    Plays some of the clients' training once more on this machine, over the real exchange, and
    tries to read text and answers back from what arrives at the host.

    Exits with 0 whatever was read, 1 if FILE cannot be written, 2 if a run cannot be audited here
    and 130 if it was interrupted.
    """
    options = AuditOptions(questions, seed, observations)
    command = shlex.join(["python", "-m", "benchmarks.audit", *sys.argv[1:]])
    cwd = Path.cwd()

    def progress(line: str) -> None:
        typer.echo(line, err=True)

    try:
        with interrupts():
            results = carry_out(targets, options, clients, app, cwd, command, progress)
    except (ConfigError, DataError, ResourceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    try:
        typer.echo(show(results, as_json, out))
    except OSError as error:
        typer.echo(f"error: {out} cannot be written: {error}", err=True)
        raise typer.Exit(FAILED) from None


if __name__ == "__main__":
    cli()
