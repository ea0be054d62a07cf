"""Options of several commands, and the exit status of every command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import click
import typer

from fednano_flwr.base.output import OutputError
from fednano_flwr.base.resources import ResourceError
from fednano_flwr.base.signals import interrupts
from fednano_flwr.config import DTYPES, ConfigError
from fednano_flwr.config.proxies import proxies_in_words
from fednano_flwr.data.errors import DataError

FAILED, USAGE, LOST_CLIENTS, INTERRUPTED = 1, 2, 3, 130

Config = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        "--config",
        metavar="KEY=VALUE|FILE.toml",
        help="Change the run config; may be repeated, the last one wins. Keys: docs/config.md.",
    ),
]
App = Annotated[
    Path | None, typer.Option(help="Folder of the app; else the current or the installed one.")
]
Revision = Annotated[
    str, typer.Option(help="Branch, tag or commit of a model on the hub; else its default branch.")
]
FamilyChoice = Annotated[
    str | None,
    typer.Option(
        "--family",
        click_type=click.Choice(("auto",)),
        help="model.family: also a model of a family that is not listed.",
    ),
]
NewFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")]
StoredAs = Annotated[
    str | None,
    typer.Option(
        click_type=click.Choice(DTYPES), help="Dtype of the written tensors; else as they are."
    ),
]
Which = Annotated[
    str,
    typer.Option(
        click_type=click.Choice(("best", "last")), help="Adapters of the best or the last round."
    ),
]
RunModel = Annotated[
    str, typer.Option(help="The run's model, where its config names another place.")
]


def notice(line: str) -> None:
    """Write a line to stderr, so that stdout holds results only."""
    typer.echo(f"note: {line}", err=True)


def say_proxies() -> None:
    """Say which proxies are used for other machines.

    Raises:
        ConfigError: one of them cannot be used.
    """
    if words := proxies_in_words():
        notice(words)


def command_line() -> str:
    """This command as it can be typed again."""
    typed = shlex.join(["fednano", *sys.argv[1:]])
    return typed.encode(errors="backslashreplace").decode()  # of a name that is no UTF-8


@contextmanager
def exit_status(
    failed: str = "",
    interrupted: str = "interrupted",
    usage_errors: tuple[type[Exception], ...] = (),
    failures: tuple[type[Exception], ...] = (),
    when_interrupted: int = INTERRUPTED,
) -> Iterator[None]:
    """Turn the block's errors into one line on stderr and an exit status.

    Ctrl-C, SIGTERM and SIGHUP end it with `when_interrupted`; settings, data and folders that
    cannot be used with 2; an `OSError` with 1.

    Args:
        failed: says what could not be done, before an `OSError`'s own message.
        interrupted: says how things stand after an interrupt; "": nothing is said.
        usage_errors: further errors that end it with 2.
        failures: further errors that end it with 1.
    """
    usage_errors = (ConfigError, DataError, OutputError, ResourceError, *usage_errors)
    failures = (OSError, *failures)
    try:
        with interrupts():
            yield
    except usage_errors as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except failures as error:
        typer.echo(f"error: {failed}: {error}" if failed else f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        if interrupted:
            typer.echo(interrupted, err=True)
        raise typer.Exit(when_interrupted) from None


def writing(out: Path) -> AbstractContextManager[None]:
    """`exit_status` of a command that writes the folder `out` whole or not at all."""
    return exit_status(
        f"{out} cannot be written, and nothing is left there",
        "interrupted; nothing is left behind",
    )
