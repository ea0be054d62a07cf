"""`fednano data`: what the model will see of the data, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.cli.options import USAGE, App, Config, exit_status
from fednano_flwr.config.project import find_app
from fednano_flwr.preflight import config_of

command = typer.Typer()


@command.command(
    epilog="Example: fednano data -c dataset.name=messages -c dataset.path=my.jsonl "
    "-c dataset.test-fraction=0.2 --clients 3. More: docs/own-data.md."
)
def data(
    clients: Annotated[int, typer.Option(min=1, help="To whom the data are dealt.")] = 5,
    client: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Look at this client alone.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Training rows of each client to show.")] = 1,
    data_path: Annotated[
        str,
        typer.Option(metavar="PATH", help="A client's own data, as data-path in a node config."),
    ] = "",
    config: Config = None,
    app: App = None,
) -> None:
    """Show what the model will see of the data; the LLM is not loaded.

    Of each client's first rows: the prompt with its special tokens, where pictures stand and how
    many tokens they take, what the loss is on (lines that begin with "loss"). Then how long all
    questions are, what is left out and why, and which client has how many of which group.

    Exits with 0 if the data can be used, and with 2 if settings or data cannot, or a client would
    fail.
    """
    from fednano_flwr.preview import report
    from fednano_flwr.preview.clients import Preview
    from fednano_flwr.preview.data import read_data

    with exit_status():
        cwd = Path.cwd()
        parsed = config_of(find_app(app, cwd), config or [], cwd)
        found = read_data(parsed, clients, client, data_path)
        usable = report.show(Preview(parsed), found, rows, report.console())
    if not usable:
        raise typer.Exit(USAGE)
