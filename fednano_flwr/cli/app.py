"""`fednano`: run FedNano from the command line.

fednano run --clients 5 -c strategy.name=fedavg -c conf/iconqa.toml
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.base.live import terminal
from fednano_flwr.cli import (
    ask,
    check,
    compare,
    data,
    doctor,
    export,
    partition,
    report,
    serve,
    size,
    split,
    web,
)
from fednano_flwr.cli.options import (
    FAILED,
    LOST_CLIENTS,
    App,
    Config,
    exit_status,
    say_proxies,
)
from fednano_flwr.cli.screen import Screen
from fednano_flwr.cli.streams import lasting_streams
from fednano_flwr.config.project import NAME, find_app
from fednano_flwr.config.proxies import spare_this_machine
from fednano_flwr.launcher.environment import LaunchError
from fednano_flwr.launcher.launch import launch, tail
from fednano_flwr.preflight import read_questions, run_config, validate, validate_machine
from fednano_flwr.runs.resume import NEVER, run_folder_of

cli = typer.Typer(
    name="fednano",
    help="FedNano on Flower: federated tuning of multimodal LLMs.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


for subcommand in (
    *(data, partition, split, size, check, doctor),
    *(compare, report, export, ask, serve, web),
):
    cli.add_typer(subcommand.command)


def main() -> None:
    """Entry point of the `fednano` command.

    That nobody reads its output any more changes neither its work nor its exit status; output that
    could not be written for another reason makes a status of 0 a 1.
    """
    output_failed = lasting_streams()
    try:
        cli()
    except SystemExit as end:
        if output_failed() and not end.code:
            raise SystemExit(FAILED) from None
        raise


def _version(wanted: bool) -> None:
    if wanted:
        try:
            number = importlib.metadata.version(NAME)
        except importlib.metadata.PackageNotFoundError:
            number = "(not installed)"
        typer.echo(f"fednano {number}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """FedNano on Flower: federated tuning of multimodal LLMs with the LLM kept on the server."""
    spare_this_machine(os.environ)


@cli.command()
def run(
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 5,
    client_cpus: Annotated[
        int, typer.Option(min=1, help="CPUs a client gets; as many work at once as fit.")
    ] = 1,
    client_gpus: Annotated[
        float, typer.Option(min=0.0, help="GPUs a client gets; 0.25 lets four share one.")
    ] = 0.0,
    config: Config = None,
    app: App = None,
    verbose: Annotated[bool, typer.Option(help="Show everything that Flower prints.")] = False,
) -> None:
    """Run a federation on this machine and wait for its end.

    Exits with 0 if the run completed, 1 if it failed, 2 if the config cannot be used, 3 if all
    rounds are done but a client took no part in any, and 130 if it was interrupted. Nothing is
    left running in any case.
    """
    try:
        with exit_status(interrupted="interrupted; nothing is left running"):
            cwd = Path.cwd()
            folder = find_app(app, cwd)
            parsed = run_config(folder, config or [], clients, cwd)
            say_proxies()
            with Screen(verbose, terminal()) as screen:
                validate_machine(clients, client_cpus, client_gpus)
                validate(parsed)
                read_questions(parsed.dataset, parsed.seed, clients)
                screen.starting()
                with run_folder_of(parsed) as results:
                    flat = parsed.flat()
                    if parsed.resume == NEVER and not parsed.run.name:
                        flat["run.name"] = results.name
                    status = launch(
                        folder, flat, clients, client_cpus, client_gpus, screen.show, screen.watch
                    )
    except LaunchError as error:
        _show_failure(str(error), error.log)
        raise typer.Exit(FAILED) from None
    if status.lost_clients:
        _show_failure(status.lost_clients, None)
        raise typer.Exit(LOST_CLIENTS)
    if not status.completed:
        remark = f" ({status.details})" if status.details else ""
        _show_failure(f"the run did not complete: {status.status}{remark}", status.log)
        raise typer.Exit(FAILED)


def _show_failure(message: str, log: Path | None) -> None:
    """The end of the log first, so that the message is the last thing on the screen."""
    if log is not None and log.exists():
        for line in tail(log):
            typer.echo(f"  {line}", err=True)
    typer.echo(f"error: {message}", err=True)
    if log is not None:
        typer.echo(f"the log: {log}", err=True)


if __name__ == "__main__":
    main()
