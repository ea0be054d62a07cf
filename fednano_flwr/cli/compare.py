"""`fednano compare`: experiments over several seeds, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.cli.options import (
    FAILED,
    App,
    Config,
    command_line,
    exit_status,
    say_proxies,
)
from fednano_flwr.config.project import find_app

command = typer.Typer()


@command.command(
    epilog="Example: fednano compare conf/fedavg.toml conf/fednano-ef.toml --seeds 0..4 "
    "--vary dataset.alpha=0.1,1. What the table says: docs/compare.md."
)
def compare(
    experiments: Annotated[
        list[Path], typer.Argument(metavar="FILE.toml...", help="One experiment each.")
    ],
    seeds: Annotated[str, typer.Option(help="As in 0..4 or 0,1,2.")] = "0..2",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE", help="Compare at each of these values; may be repeated."
        ),
    ] = None,
    config: Config = None,
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 5,
    baseline: Annotated[
        str | None, typer.Option(help="Experiment to compare with; else the first.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of runs and tables.")] = Path(
        "runs/compare"
    ),
    name: Annotated[str, typer.Option(help="Folder in DIR of this comparison's tables.")] = "table",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs side by side; else one a CPU, and one in all where a device is not the CPU.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs.")] = False,
    app: App = None,
) -> None:
    """Run experiments with several seeds on this machine and compare them.

    An experiment is a .toml file of run-config keys, named by its file. -c changes all of them,
    --vary last. Runs that are finished already are not run again: an interrupted comparison goes
    on where it was.

    Exits with 0 if all runs completed, 1 if one failed, 2 if something cannot be used (nothing has
    run then) and 130 if it was interrupted.
    """
    from fednano_flwr.analysis.compare import compare as carry_out
    from fednano_flwr.analysis.experiments.plan import CompareOptions

    options = CompareOptions(
        experiments, seeds, vary or [], config or [], clients, baseline, out, name
    )
    cwd = Path.cwd()
    interrupted = "interrupted; nothing is left running, and the same command goes on from here"
    with exit_status(interrupted=interrupted):
        say_proxies()
        app = find_app(app, cwd)
        if not carry_out(app, options, cwd, workers, dry_run, command_line(), typer.echo):
            raise typer.Exit(FAILED)
