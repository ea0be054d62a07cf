"""Options that several commands have, their exit statuses, and how they fail."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.base.signals import interrupts
from fednano_flwr.config import DTYPES, ConfigError
from fednano_flwr.config.proxies import proxies_in_words

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


def check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        typer.echo(f"error: --dtype {dtype}: must be one of {', '.join(DTYPES)}", err=True)
        raise typer.Exit(USAGE)


def notice(line: str) -> None:
    """Say something that is no result, beside what may be read by a program."""
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
def writing(out: Path) -> Iterator[None]:
    """What goes wrong while a folder is written, on one line and as an exit status."""
    from fednano_flwr.base.output import OutputError
    from fednano_flwr.base.resources import ResourceError
    from fednano_flwr.data.errors import DataError

    try:
        with interrupts():
            yield
    except (ConfigError, DataError, OutputError, ResourceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except OSError as error:
        typer.echo(f"error: {out} cannot be written: {error}; nothing is left there", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is left behind", err=True)
        raise typer.Exit(INTERRUPTED) from None
