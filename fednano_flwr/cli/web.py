"""`fednano web`: a page that asks the frozen and the tuned model side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednano_flwr.base.resources import ResourceError
from fednano_flwr.cli.ask import (
    Bundle,
    CaCert,
    Llm,
    MaxTokens,
    TokenFile,
    asking,
    open_run,
)
from fednano_flwr.cli.options import Config, RunModel, Which, notice
from fednano_flwr.config import ConfigError

if TYPE_CHECKING:
    from fednano_flwr.data.sample import Sample

command = typer.Typer()


@command.command(epilog="Needs the extra: pip install 'fednano-flwr[web]'. More: docs/ask.md.")
def web(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    port: Annotated[int, typer.Option(min=0, help="0: a free one.")] = 0,
    examples: Annotated[
        int, typer.Option(min=0, help="Test questions of the run to offer; 0: none.")
    ] = 6,
    which: Which = "best",
    model: RunModel = "",
    bundle: Bundle = "",
    llm: Llm = None,
    token_file: TokenFile = None,
    ca_cert: CaCert = "",
    max_tokens: MaxTokens = 0,
    config: Config = None,
) -> None:
    """Show a page, on this machine only, that asks the frozen and the tuned model side by side.

    A click fills in a test question of the run's data; the other options are those of `fednano
    ask`. Exits with 0 when it is stopped, 1 if service or port cannot be had and 2 if something
    else cannot be used.
    """
    from threading import Event

    from fednano_flwr.ask.opening import shared_questions
    from fednano_flwr.ask.web import showing, spread

    def offered() -> list[Sample]:
        try:
            return spread(shared_questions(run, config or ()), examples) if examples else []
        except (ConfigError, ResourceError) as error:
            notice(f"the page offers no test questions: {str(error).splitlines()[0]}")
            return []

    title = f"{run.name}: frozen and tuned"
    with (
        asking(when_interrupted=0),
        open_run(run, which, model, bundle, llm, token_file, ca_cert, config, max_tokens) as asker,
        showing(asker, title, port, offered()) as address,
    ):
        typer.echo(f"the page is at {address}, until this command is stopped")
        Event().wait()
