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
from fednano_flwr.base.output import OutputError
from fednano_flwr.base.signals import interrupts
from fednano_flwr.cli import after, before, use
from fednano_flwr.cli.options import (
    FAILED,
    INTERRUPTED,
    LOST_CLIENTS,
    USAGE,
    App,
    Config,
    Revision,
    check_dtype,
    say_proxies,
    writing,
)
from fednano_flwr.cli.screen import Screen
from fednano_flwr.cli.streams import lasting_streams
from fednano_flwr.config import ConfigError
from fednano_flwr.config.project import NAME, find_app
from fednano_flwr.config.proxies import spare_this_machine
from fednano_flwr.launcher.environment import LaunchError
from fednano_flwr.launcher.launch import launch, tail
from fednano_flwr.preflight import read_questions, run_config, validate
from fednano_flwr.runs.resume import NEVER, run_folder_of

cli = typer.Typer(
    name="fednano",
    help="FedNano on Flower: federated tuning of multimodal LLMs.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


for more in (before, after, use):
    cli.add_typer(more.commands)


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
        cwd = Path.cwd()
        folder = find_app(app, cwd)
        parsed = run_config(folder, config or [], clients, cwd)
        say_proxies()
        with interrupts(), Screen(verbose, terminal()) as screen:
            validate(parsed)
            read_questions(parsed.dataset, parsed.seed, clients)
            with run_folder_of(parsed) as results:
                flat = parsed.flat()
                if parsed.resume == NEVER and not parsed.run.name:
                    flat["run.name"] = results.name
                status = launch(
                    folder, flat, clients, client_cpus, client_gpus, screen.show, screen.watch
                )
    except (ConfigError, OutputError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except LaunchError as error:
        _show_failure(str(error), error.log)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is left running", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if status.lost_clients:
        _show_failure(status.lost_clients, None)
        raise typer.Exit(LOST_CLIENTS)
    if not status.completed:
        remark = f" ({status.details})" if status.details else ""
        _show_failure(f"the run did not complete: {status.status}{remark}", status.log)
        raise typer.Exit(FAILED)


@cli.command(
    epilog="Example: fednano partition -c dataset.path=/data/scienceqa -c dataset.alpha=0.1 "
    "--clients 10 --out shards"
)
def partition(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    clients: Annotated[int, typer.Option(min=1, help="How many shards to make.")] = 5,
    config: Config = None,
    map_only: Annotated[
        bool, typer.Option("--map-only", help="Write the map and the counts, and no shards.")
    ] = False,
    app: App = None,
) -> None:
    """Deal the data set to clients, each into a folder of its own, with a map of who has what.

    DIR/client-0, … hold a client's questions and pictures and nothing of the others'; give one to
    a SuperNode with --node-config 'data-path="…/client-0"'. DIR/partition.png is the map.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if settings or data cannot be used and
    130 if it was interrupted; where it is not 0, nothing is left behind.
    """
    from fednano_flwr.cli.partition import partition_to_folder

    with writing(out):
        cwd = Path.cwd()
        parsed = run_config(find_app(app, cwd), config or [], clients, cwd)
        typer.echo(partition_to_folder(parsed, clients, cwd / out.expanduser(), map_only))


@cli.command(
    epilog="Example: fednano split llava-hf/llava-1.5-7b-hf --out edge-bundle --dtype bfloat16"
)
def split(
    model: Annotated[str, typer.Argument(help="Hub id, or folder of a model.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    shard: Annotated[
        Path | None,
        typer.Option(
            help="A client's folder by `fednano partition`: keep only its tokens' embeddings."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Store tensors as float32, bfloat16 or float16; else as they are."),
    ] = None,
    revision: Revision = "",
) -> None:
    """Write the client's half of a model, to be given to a client instead of the checkpoint.

    DIR holds vision encoder, connector, token embeddings, processor and a manifest; nothing of the
    language model. Give it to a SuperNode with --node-config 'edge-path="…/edge-bundle"', to a
    simulation with -c edge.bundle=edge-bundle.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if the model cannot be split and 130 if
    it was interrupted; where it is not 0, nothing is left behind.
    """
    from fednano_flwr.cli.split import split as write

    check_dtype(dtype)
    with writing(out):
        typer.echo(write(model, out.expanduser(), shard, dtype, revision))


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
