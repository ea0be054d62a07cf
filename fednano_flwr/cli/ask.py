"""`fednano ask`: questions to a tuned model; and the options of the commands that ask."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednano_flwr.ask import MAX_TOKENS
from fednano_flwr.cli.options import (
    INTERRUPTED,
    Config,
    RunModel,
    Which,
    exit_status,
    notice,
    say_proxies,
)
from fednano_flwr.config import ConfigError

if TYPE_CHECKING:
    from fednano_flwr.ask.asker import Asker

command = typer.Typer()

Llm = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Ask this `fednano serve`; else load the LLM here."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Of the service's token; else serve.token in the cache."),
]
CaCert = Annotated[str, typer.Option(metavar="FILE", help="The CA of a service with TLS.")]
Bundle = Annotated[str, typer.Option(metavar="DIR", help="Edge bundle, instead of the checkpoint.")]
MaxTokens = Annotated[
    int,
    typer.Option(min=0, help=f"Of a free answer; 0: {MAX_TOKENS}, or max-answer-tokens if more."),
]


@command.command(
    epilog='Example: fednano ask runs/demo --image cat.png --choices "a cat;a dog" '
    '"What is this?". More: docs/ask.md.'
)
def ask(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    question: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    example: Annotated[int, typer.Option(metavar="N", help="Ask the run's Nth test question.")] = 0,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture.")] = None,
    audio: Annotated[Path | None, typer.Option(metavar="FILE", help="A sound.")] = None,
    choices: Annotated[str, typer.Option(metavar='"A;B;C"', help="Else a free answer.")] = "",
    hint: Annotated[str, typer.Option(metavar="TEXT", help="Context of the question.")] = "",
    frozen: Annotated[bool, typer.Option("--frozen", help="Ask the untrained model.")] = False,
    which: Which = "best",
    model: RunModel = "",
    bundle: Bundle = "",
    llm: Llm = None,
    token_file: TokenFile = None,
    ca_cert: CaCert = "",
    max_tokens: MaxTokens = 0,
    config: Config = None,
) -> None:
    """Ask a run's tuned model a question.

    The prompt is the one that training used. Both halves of the model are loaded here; with --llm
    only the client's, from a bundle if one is given, and the service has the rest. --example asks
    the frozen and the tuned model a question that the run was tested on. -c changes edge.*, llm.*,
    exchange.*, max-answer-tokens and dataset.path of the run's config.

    Exits with 0 if there is an answer, 1 if the language model gave none and 2 if run, model or
    question cannot be used.
    """
    from fednano_flwr.ask import terminal
    from fednano_flwr.ask.opening import shared_questions

    def write(text: str) -> None:
        typer.echo(text, nl=False)

    if (question is None) == (not example):
        raise typer.BadParameter("give a question, or --example N for one of the run's own")
    if example and (image or audio or choices or hint or frozen):
        raise typer.BadParameter("--example has its picture and choices, and asks both models")
    with (
        asking(),
        open_run(run, which, model, bundle, llm, token_file, ca_cert, config, max_tokens) as asker,
    ):
        if question is None:
            terminal.show(asker, shared_questions(run, config or ()), example, write, notice)
        else:
            options = choices.split(";") if choices.strip() else []
            terminal.ask(asker, question, image, options, hint, frozen, write, notice, audio)


def asking(when_interrupted: int = INTERRUPTED) -> AbstractContextManager[None]:
    """`exit_status` of a command that asks a language model or hosts one."""
    from fednano_flwr.ask.asker import AskError
    from fednano_flwr.exchange.errors import HostRefusedError
    from fednano_flwr.models.edge_half import MissingRowError

    return exit_status(
        interrupted="",
        usage_errors=(AskError, MissingRowError),
        failures=(HostRefusedError,),
        when_interrupted=when_interrupted,
    )


def open_run(
    run: Path,
    which: str,
    model: str,
    bundle: str,
    llm: str | None,
    token_file: Path | None,
    ca_cert: str,
    config: list[str] | None,
    max_tokens: int,
) -> AbstractContextManager[Asker]:
    """`open_asker` with the options of `ask` and `web`."""
    from fednano_flwr.ask.opening import Service, open_asker
    from fednano_flwr.ask.opening import token_file as usual

    say_proxies()
    if llm is None and (token_file or ca_cert):
        raise ConfigError("--token-file and --ca-cert are of a service: give its --llm")
    service = Service(llm, (token_file or usual()).expanduser(), ca_cert) if llm else None
    return open_asker(
        run.expanduser(), which, model, bundle, service, config or [], max_tokens, notice
    )
