"""`fednano doctor`: whether this machine is ready for a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.cli.options import FAILED, App, Config, exit_status

command = typer.Typer()


@command.command(
    epilog='Example: fednano doctor --node-config \'data-path="shards/client-0" '
    'edge-path="edge-bundle"\' --superlink 192.0.2.7:8000. What is looked at: docs/doctor.md.'
)
def doctor(
    config: Config = None,
    node_config: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the SuperNode is given; this machine is a client."),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(help="simulation, server or client; else client with --node-config."),
    ] = None,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Try this SuperLink.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Try this LLM service.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object of findings.")] = False,
    app: App = None,
) -> None:
    """Say whether this machine has what a run needs of it, and what to do where it has not.

    Nothing is changed, started or downloaded. Exits with 0 if there is no problem (warnings may
    be), 1 if there is one and 2 if the command line cannot be used.
    """
    from rich.console import Console

    from fednano_flwr.doctor import report
    from fednano_flwr.doctor.command import DoctorOptions, examine, role_of

    options = DoctorOptions(role, app, config or [], node_config, superlink, llm)
    with exit_status():
        looked_at = role_of(options)
        sections = examine(options, looked_at, Path.cwd())
    if as_json:
        typer.echo(report.as_json(looked_at, sections))
    else:
        report.show(looked_at, sections, Console(highlight=False))
    if report.counts(sections)["problem"]:
        raise typer.Exit(FAILED)
