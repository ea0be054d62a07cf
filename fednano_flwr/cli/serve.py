"""`fednano serve`: a language model for `fednano ask --llm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fednano_flwr.cli.ask import asking
from fednano_flwr.cli.options import App, Config, FamilyChoice, Revision, Which, say_proxies
from fednano_flwr.config.project import find_app

command = typer.Typer()


@command.command(
    epilog="Example: fednano serve llava-hf/llava-1.5-7b-hf --device cuda --dtype bfloat16. "
    "More: docs/ask.md."
)
def serve(
    model: Annotated[
        str, typer.Argument(help="Hub id, or folder of a model; else the run's.")
    ] = "",
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Serve for this run, with the LoRA that it has trained inside the model, if any.",
        ),
    ] = None,
    which: Which = "best",
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
    family: FamilyChoice = None,
    config: Config = None,
    app: App = None,
) -> None:
    """Host a model's language model for `fednano ask --llm`, until it is stopped.

    It generates and scores; it takes no part in training. Who has the token may use it. Without
    TLS it listens on this machine only. Other settings are the run config's llm.*, with -c.

    A plain model answers for all runs whose adapter.sites has no llm. For one that has it, give
    the run's folder with --run, and the same --which as in `fednano ask`.

    Exits with 0 when it is stopped, 1 if the port cannot be had and 2 if something else cannot be
    used.
    """
    from threading import Event

    from fednano_flwr.ask.opening import token_file as usual
    from fednano_flwr.ask.serve import llm_config, serving
    from fednano_flwr.runs.results import load_run

    if not model and run is None:
        raise typer.BadParameter("give a MODEL, or a run's folder with --run")
    if run is not None and (revision or family):
        raise typer.BadParameter("--revision and --family are the run's own with --run")
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
    with asking(when_interrupted=0):
        say_proxies()
        cwd = Path.cwd()
        settings = llm_config(find_app(app, cwd), given, config or [], cwd)
        file = (token_file or usual()).expanduser()
        found = load_run(run) if run else None
        with serving(
            model, settings, file, typer.echo, revision, family or "", run=found, which=which
        ):
            Event().wait()
