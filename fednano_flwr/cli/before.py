"""Commands around a run: what it takes, whether this machine is ready, many runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.base.signals import interrupts
from fednano_flwr.cli.options import (
    FAILED,
    INTERRUPTED,
    USAGE,
    App,
    Config,
    Revision,
    check_dtype,
    command_line,
    say_proxies,
)
from fednano_flwr.config import ConfigError
from fednano_flwr.config.project import find_app

commands = typer.Typer()


@commands.command(
    epilog="Example: fednano size llava-1.5-7b --rank 64 --dtype bfloat16. "
    "What is counted and how: docs/models.md."
)
def size(
    model: Annotated[
        str,
        typer.Argument(help="A shipped config's name, a folder, a config.json or a hub id."),
    ],
    rank: Annotated[int, typer.Option(min=1, help="r of the NanoAdapters.")] = 64,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Token rows that a client keeps; else what 1,653 ScienceQA questions use.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the frozen parts and the wire: float32, bfloat16 or float16.")
    ] = "bfloat16",
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a sample; else one picture's and 128 of text."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples in a step; only matters to the lowrank exchange.")
    ] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object of all counts.")] = False,
    revision: Revision = "",
) -> None:
    """Show what each side of a model takes: parameters, storage, memory and traffic.

    MODEL is llava-1.5-7b, llava-1.5-13b or instructblip-vicuna-7b (their configs are shipped), a
    model's folder, a config.json, package:NAME/SUB, or a hub id.

    Counted from its config alone: no weight is read or downloaded. Exits with 2 if there is no such
    model or it cannot be cut.
    """
    from fednano_flwr.cli.size import Asked
    from fednano_flwr.cli.size import size as measure

    check_dtype(dtype)
    try:
        typer.echo(measure(Asked(model, rank, rows, dtype, tokens, batch_size, revision), as_json))
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None


@commands.command(
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
    from fednano_flwr.doctor.command import Asked, examine, role_of

    asked = Asked(role, app, config or [], node_config, superlink, llm)
    try:
        looked_at = role_of(asked)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    sections = examine(asked, looked_at, Path.cwd())
    if as_json:
        typer.echo(report.as_json(looked_at, sections))
    else:
        report.show(looked_at, sections, Console(highlight=False))
    if report.counts(sections)["problem"]:
        raise typer.Exit(FAILED)


@commands.command(
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
    from fednano_flwr.analysis.experiments.command import compare as carry_out
    from fednano_flwr.analysis.experiments.plan import Asked
    from fednano_flwr.base.output import OutputError

    asked = Asked(experiments, seeds, vary or [], config or [], clients, baseline, out, name)
    command, cwd = command_line(), Path.cwd()
    try:
        say_proxies()
        with interrupts():
            well = carry_out(find_app(app, cwd), asked, cwd, workers, dry_run, command, typer.echo)
    except (ConfigError, OutputError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo(
            "interrupted; nothing is left running, and the same command goes on from here", err=True
        )
        raise typer.Exit(INTERRUPTED) from None
    if not well:
        raise typer.Exit(FAILED)
