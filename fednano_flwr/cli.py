"""`fednano`: run FedNano from the command line.

fednano run --clients 5 -c strategy.name=fedavg -c conf/iconqa.toml
"""

from __future__ import annotations

import importlib.metadata
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednano_flwr.command.environment import LaunchError
from fednano_flwr.command.launch import launch, tail
from fednano_flwr.command.overrides import run_config
from fednano_flwr.command.project import NAME, find_app
from fednano_flwr.command.screen import Screen
from fednano_flwr.command.signals import interrupts
from fednano_flwr.command.validate import read_questions, validate
from fednano_flwr.config import DTYPES, ConfigError

if TYPE_CHECKING:
    from fednano_flwr.ask.session import Asker

FAILED, USAGE, INTERRUPTED = 1, 2, 130

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
    int, typer.Option(min=0, help="Most tokens of a free answer; 0: max-answer-tokens.")
]

cli = typer.Typer(
    name="fednano",
    help="FedNano on Flower: federated tuning of multimodal LLMs.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def main() -> None:
    """Entry point of the `fednano` command."""
    cli()


def _version(wanted: bool) -> None:
    if wanted:
        try:
            number = importlib.metadata.version(NAME)
        except importlib.metadata.PackageNotFoundError:
            number = "(not installed)"
        typer.echo(f"fednano {number}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """FedNano on Flower: federated tuning of multimodal LLMs with the LLM kept on the server."""
    # Where it is installed, PEFT imports it, and it complains of an optional package.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@cli.command()
def run(
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 5,
    client_cpus: Annotated[
        int, typer.Option(min=1, help="CPUs a client gets; as many work at once as fit.")
    ] = 1,
    client_gpus: Annotated[
        float, typer.Option(min=0.0, help="GPUs a client gets; 0.25 lets four share one.")
    ] = 0.0,
    config: Config = None,
    app: App = None,
    verbose: Annotated[bool, typer.Option(help="Show everything that Flower prints.")] = False,
) -> None:
    """Run a federation on this machine and wait for its end.

    Exits with 0 if the run completed, 1 if it failed, 2 if the config cannot be used and 130 if it
    was interrupted. Nothing is left running in any case.
    """
    try:
        cwd = Path.cwd()
        folder = find_app(app, cwd)
        parsed = run_config(folder, config or [], clients, cwd)
        with Screen(verbose) as screen:
            validate(parsed)
            read_questions(parsed.dataset)
            status = launch(folder, parsed.flat(), clients, client_cpus, client_gpus, screen.show)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None
    except LaunchError as error:
        _show_failure(str(error), error.log)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is left running", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not status.completed:
        remark = f" ({status.details})" if status.details else ""
        _show_failure(f"the run did not complete: {status.status}{remark}", status.log)
        raise typer.Exit(FAILED)


@cli.command(
    epilog="Example: fednano partition -c dataset.path=/data/scienceqa -c dataset.alpha=0.1 "
    "--clients 10 --out shards"
)
def partition(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    clients: Annotated[int, typer.Option(min=1, help="How many shards to make.")] = 5,
    config: Config = None,
    map_only: Annotated[
        bool, typer.Option("--map-only", help="Write the map and the counts, and no shards.")
    ] = False,
    app: App = None,
) -> None:
    """Deal the data set to clients, each into a folder of its own, with a map of who has what.

    DIR/client-0, … hold a client's questions and pictures and nothing of the others'; give one to
    a SuperNode with --node-config 'data-path="…/client-0"'. DIR/partition.png is the map.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if settings or data cannot be used and
    130 if it was interrupted; where it is not 0, nothing is left behind.
    """
    from fednano_flwr.command.partition import partition_to_folder

    with _writing(out):
        cwd = Path.cwd()
        parsed = run_config(find_app(app, cwd), config or [], clients, cwd)
        typer.echo(partition_to_folder(parsed, clients, cwd / out.expanduser(), map_only))


@cli.command(
    epilog="Example: fednano split llava-hf/llava-1.5-7b-hf --out edge-bundle --dtype bfloat16"
)
def split(
    model: Annotated[str, typer.Argument(help="Hub id, or folder of a model.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; new or empty.")],
    shard: Annotated[
        Path | None,
        typer.Option(
            help="A client's folder by `fednano partition`: keep only its tokens' embeddings."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Store tensors as float32, bfloat16 or float16; else as they are."),
    ] = None,
) -> None:
    """Write the client's half of a model, to be given to a client instead of the checkpoint.

    DIR holds vision encoder, connector, token embeddings, processor and a manifest; nothing of the
    language model. Give it to a SuperNode with --node-config 'edge-path="…/edge-bundle"', to a
    simulation with -c edge.bundle=edge-bundle.

    Exits with 0 if DIR is written, 1 if writing failed, 2 if the model cannot be split and 130 if
    it was interrupted; where it is not 0, nothing is left behind.
    """
    from fednano_flwr.command.split import split as write

    _check_dtype(dtype)
    with _writing(out):
        typer.echo(write(model, out.expanduser(), shard, dtype))


@cli.command(
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

    _check_dtype(dtype)
    with _writing(out):
        typer.echo(write(run.expanduser(), form, which, out.expanduser(), model, dtype))


@cli.command(
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
) -> None:
    """Show what each side of a model takes: parameters, storage, memory and traffic.

    MODEL is llava-1.5-7b, llava-1.5-13b or instructblip-vicuna-7b (their configs are shipped), a
    model's folder, a config.json, package:NAME/SUB, or a hub id.

    Counted from its config alone: no weight is read or downloaded. Exits with 2 if there is no such
    model or it cannot be cut.
    """
    from fednano_flwr.command.size import Asked
    from fednano_flwr.command.size import size as measure

    _check_dtype(dtype)
    try:
        typer.echo(measure(Asked(model, rank, rows, dtype, tokens, batch_size), as_json))
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE) from None


@cli.command(
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
    from fednano_flwr.compare.command import compare as carry_out
    from fednano_flwr.compare.plan import Asked
    from fednano_flwr.output import OutputError

    asked = Asked(experiments, seeds, vary or [], config or [], clients, baseline, out, name)
    command = shlex.join(["fednano", *sys.argv[1:]])
    cwd = Path.cwd()
    try:
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


@cli.command(
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


@cli.command(
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

    asked, command = Asked(questions, seed, observations), shlex.join(["fednano", *sys.argv[1:]])
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


@cli.command(
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
            for file in write(runs, out.expanduser() if out else None):
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


@cli.command(
    epilog='Example: fednano ask runs/demo --image cat.png --choices "a cat;a dog" '
    '"What is this?". More: docs/ask.md.'
)
def ask(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
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
    only the client's, from a bundle if one is given, and the service has the rest. -c changes
    edge.*, llm.* and exchange.* of the run's config.

    Exits with 0 if there is an answer, 1 if the service gave none and 2 if run, model or question
    cannot be used.
    """
    from fednano_flwr.ask.command import ask as put
    from fednano_flwr.ask.command import split_choices

    with (
        _asking(),
        _asker(run, which, model, bundle, llm, token_file, ca_cert, config, max_tokens) as asker,
    ):
        put(
            asker,
            question,
            image,
            split_choices(choices),
            hint,
            frozen,
            lambda text: typer.echo(text, nl=False),
            _notice,
        )


@cli.command(
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
    }
    with _asking(stopped=0):
        cwd = Path.cwd()
        settings = llm_config(find_app(app, cwd), given, config or [], cwd)
        with serving(model, settings, (token_file or usual()).expanduser(), typer.echo):
            Event().wait()


@cli.command(epilog="Needs the extra: pip install 'fednano-flwr[web]'. More: docs/ask.md.")
def web(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    port: Annotated[int, typer.Option(min=0, help="0: a free one.")] = 0,
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

    Options are those of `fednano ask`. Exits with 0 when it is stopped, 1 if service or port cannot
    be had and 2 if something else cannot be used.
    """
    from threading import Event

    from fednano_flwr.ask.web import showing

    title = f"{run.name}: frozen and tuned"
    with (
        _asking(stopped=0),
        _asker(run, which, model, bundle, llm, token_file, ca_cert, config, max_tokens) as asker,
        showing(asker, title, port) as address,
    ):
        typer.echo(f"the page is at {address}, until this command is stopped")
        Event().wait()


def _notice(line: str) -> None:
    typer.echo(f"note: {line}", err=True)


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
        run.expanduser(), which, model, bundle, service, config or [], max_tokens, _notice
    ) as asker:
        yield asker


@contextmanager
def _asking(stopped: int = INTERRUPTED) -> Iterator[None]:
    """What goes wrong with a question or a service, on one line and as an exit status."""
    from fednano_flwr.ask.session import AskError
    from fednano_flwr.exchange.protocol import HostRefusedError, HostUnreachableError
    from fednano_flwr.models.token_table import MissingRowError
    from fednano_flwr.resources import ResourceError

    try:
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


def _check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        typer.echo(f"error: --dtype {dtype}: must be one of {', '.join(DTYPES)}", err=True)
        raise typer.Exit(USAGE)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """What goes wrong while a folder is written, on one line and as an exit status."""
    from fednano_flwr.data.errors import DataError
    from fednano_flwr.output import OutputError
    from fednano_flwr.resources import ResourceError

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


def _show_failure(message: str, log: Path | None) -> None:
    """The end of the log first, so that the message is the last thing on the screen."""
    if log is not None and log.exists():
        for line in tail(log):
            typer.echo(f"  {line}", err=True)
    typer.echo(f"error: {message}", err=True)
    if log is not None:
        typer.echo(f"the log: {log}", err=True)


if __name__ == "__main__":
    main()
