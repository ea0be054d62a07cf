"""Commands on runs that were made: look at one, take it away, attack it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.command.options import (
    FAILED,
    INTERRUPTED,
    USAGE,
    App,
    check_dtype,
    command_line,
    notice,
    writing,
)
from fednano_flwr.command.signals import interrupts
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
    from fednano_flwr.report.command import report as write

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


@commands.command(
    epilog="Example: fednano audit runs/plain runs/noisy --questions 200. What the numbers are: "
    "docs/audit.md."
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
    from fednano_flwr.audit.command import audit as carry_out
    from fednano_flwr.audit.command import show
    from fednano_flwr.audit.results import Asked
    from fednano_flwr.data.errors import DataError
    from fednano_flwr.resources import ResourceError

    asked, command = Asked(questions, seed, observations), command_line()
    cwd = Path.cwd()

    def progress(line: str) -> None:
        typer.echo(line, err=True)

    try:
        with interrupts():
            results = carry_out(targets, asked, clients, app, cwd, command, progress)
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
