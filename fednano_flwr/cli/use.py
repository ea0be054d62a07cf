"""Commands that use a tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednano_flwr.ask import MAX_TOKENS
from fednano_flwr.base.resources import ResourceError
from fednano_flwr.base.signals import interrupts
from fednano_flwr.cli.options import (
    FAILED,
    INTERRUPTED,
    USAGE,
    App,
    Config,
    Revision,
    notice,
    say_proxies,
)
from fednano_flwr.config import ConfigError
from fednano_flwr.config.project import find_app

if TYPE_CHECKING:
    from fednano_flwr.ask.session import Asker
    from fednano_flwr.data.sample import Questions, Sample

commands = typer.Typer()

Llm = Annotated[
    str | None,
    typer.Option(
        "--llm", metavar="HOST:PORT", help="Ask this `fednano serve`; else load the LLM here."
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Of the service's token; else serve.token in the cache."),
]
CaCert = Annotated[
    str, typer.Option(metavar="FILE", help="The CA that vouches for the service; it has TLS then.")
]
Bundle = Annotated[
    str, typer.Option(metavar="DIR", help="Edge bundle of the model, instead of the checkpoint.")
]
Which = Annotated[str, typer.Option(help="Adapters of the best or the last round.")]
ItsModel = Annotated[
    str, typer.Option(help="The run's model, where its config names another place.")
]
MaxTokens = Annotated[
    int,
    typer.Option(
        min=0,
        help=f"Most tokens of a free answer; 0: {MAX_TOKENS}, or max-answer-tokens if more.",
    ),
]


@commands.command(
    epilog='Example: fednano ask runs/demo --image cat.png --choices "a cat;a dog" '
    '"What is this?". More: docs/ask.md.'
)
def ask(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    question: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    example: Annotated[
        int, typer.Option(metavar="N", help="Ask this test question of the run's data, from 1 on.")
    ] = 0,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture.")] = None,
    choices: Annotated[
        str, typer.Option(metavar='"A;B;C"', help="Choose among these; else the answer is free.")
    ] = "",
    hint: Annotated[str, typer.Option(metavar="TEXT", help="Context of the question.")] = "",
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Ask the model as it was before training.")
    ] = False,
    which: Which = "best",
    model: ItsModel = "",
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
    exchange.*, privacy.embedding-* and dataset.path of the run's config.

    Exits with 0 if there is an answer, 1 if the language model gave none and 2 if run, model or
    question cannot be used.
    """
    from fednano_flwr.ask.command import ask as put
    from fednano_flwr.ask.command import split_choices
    from fednano_flwr.ask.examples import show

    def write(text: str) -> None:
        typer.echo(text, nl=False)

    if (question is None) == (not example):
        raise typer.BadParameter("give a question, or --example N for one of the run's own")
    if example and (image or choices or hint or frozen):
        raise typer.BadParameter("--example has its picture and choices, and asks both models")
    with (
        _asking(),
        _asker(run, which, model, bundle, llm, token_file, ca_cert, config, max_tokens) as asker,
    ):
        if question is None:
            show(asker, _shared_questions(run, config), example, write, notice)
        else:
            put(asker, question, image, split_choices(choices), hint, frozen, write, notice)


@commands.command(
    epilog="Example: fednano serve llava-hf/llava-1.5-7b-hf --device cuda --dtype bfloat16. "
    "More: docs/ask.md."
)
def serve(
    model: Annotated[str, typer.Argument(help="Hub id, or folder of a model.")],
    bind: Annotated[str | None, typer.Option(help="Address to listen at.")] = None,
    port: Annotated[int | None, typer.Option(help="0: a free one.")] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="PEM.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of the token that callers need; made if missing. Else serve.token in the cache.",
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="A PyTorch device.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, 8bit or 4bit.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where Prometheus may read metrics; else nowhere."),
    ] = None,
    revision: Revision = "",
    config: Config = None,
    app: App = None,
) -> None:
    """Host a model's language model for `fednano ask --llm`, until it is stopped.

    It generates and scores; it takes no part in training. Who has the token may use it. Without
    TLS it listens on this machine only. Other settings are the run config's llm.*, with -c.

    Exits with 0 when it is stopped, 1 if the port cannot be had and 2 if something else cannot be
    used.
    """
    from threading import Event

    from fednano_flwr.ask.opening import token_file as usual
    from fednano_flwr.ask.serve import llm_config, serving

    given = {
        "bind": bind,
        "port": port,
        "tls-cert": tls_cert,
        "tls-key": tls_key,
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "metrics": metrics,
    }
    with _asking(stopped=0):
        cwd = Path.cwd()
        settings = llm_config(find_app(app, cwd), given, config or [], cwd)
        file = (token_file or usual()).expanduser()
        with serving(model, settings, file, typer.echo, revision):
            Event().wait()


@commands.command(epilog="Needs the extra: pip install 'fednano-flwr[web]'. More: docs/ask.md.")
def web(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    port: Annotated[int, typer.Option(min=0, help="0: a free one.")] = 0,
    examples: Annotated[
        int, typer.Option(min=0, help="Test questions of the run to offer; 0: none.")
    ] = 6,
    which: Which = "best",
    model: ItsModel = "",
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

    from fednano_flwr.ask.examples import spread
    from fednano_flwr.ask.web import showing

    def offered() -> list[Sample]:
        try:
            return spread(_shared_questions(run, config), examples) if examples else []
        except (ConfigError, ResourceError) as error:
            notice(f"the page offers no test questions: {str(error).splitlines()[0]}")
            return []

    title = f"{run.name}: frozen and tuned"
    with (
        _asking(stopped=0),
        _asker(run, which, model, bundle, llm, token_file, ca_cert, config, max_tokens) as asker,
        showing(asker, title, port, offered()) as address,
    ):
        typer.echo(f"the page is at {address}, until this command is stopped")
        Event().wait()


def _shared_questions(run: Path, config: list[str] | None) -> Questions:
    """The test questions of a run's data."""
    from fednano_flwr.ask.examples import shared_questions
    from fednano_flwr.ask.opening import settings_of
    from fednano_flwr.runs.results import load_run

    return shared_questions(settings_of(load_run(run), config or []).dataset)


@contextmanager
def _asker(
    run: Path,
    which: str,
    model: str,
    bundle: str,
    llm: str | None,
    token_file: Path | None,
    ca_cert: str,
    config: list[str] | None,
    max_tokens: int,
) -> Iterator[Asker]:
    """What the commands that ask open."""
    from fednano_flwr.ask.opening import Service, open_asker
    from fednano_flwr.ask.opening import token_file as usual

    if llm is None and (token_file or ca_cert):
        raise ConfigError("--token-file and --ca-cert are of a service: give its --llm")
    file = (token_file or usual()).expanduser()
    service = None if llm is None else Service(llm, file, ca_cert)
    with open_asker(
        run.expanduser(), which, model, bundle, service, config or [], max_tokens, notice
    ) as asker:
        yield asker


@contextmanager
def _asking(stopped: int = INTERRUPTED) -> Iterator[None]:
    """What goes wrong with a question or a service, on one line and as an exit status."""
    from fednano_flwr.ask.session import AskError
    from fednano_flwr.exchange.protocol import HostRefusedError, HostUnreachableError
    from fednano_flwr.models.token_table import MissingRowError

    try:
        say_proxies()
        with interrupts():
            yield
    except (ConfigError, ResourceError, AskError, MissingRowError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except (HostRefusedError, HostUnreachableError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(stopped) from None
