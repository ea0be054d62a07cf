"""From a run's folder to an `Asker`: both halves in this process, or only the client's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.adapters.site import build_adapters, load_adapter_state
from fednano_flwr.ask import MAX_TOKENS
from fednano_flwr.ask.here import Here, LastFeatures
from fednano_flwr.ask.session import Asker
from fednano_flwr.base.resources import cache_folder
from fednano_flwr.config import ConfigError, RunConfig, address_to_dial, is_loopback
from fednano_flwr.config.overrides import absolute_paths, parse_override
from fednano_flwr.edge.client import exchange_of
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import load_encoder
from fednano_flwr.exchange.protocol import LLMService
from fednano_flwr.exchange.wire.auth import read_token
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.tls import read_ca
from fednano_flwr.models.device import describe_device, threads
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.runs.results import ADAPTERS, Run, caveats, load_run, model_of, other_model

RETRY_SECONDS = 5.0
"""How long somebody who waits for an answer is left in hope that a lost service comes back."""
READ = ("edge.", "llm.", "exchange.", "dataset.path", "max-answer-tokens")
"""Keys of the run config that matter to asking."""


@dataclass(frozen=True)
class Service:
    """A running LLM service.

    Attributes:
        address: `host:port`.
        token_file: of its token.
        ca_cert: file of the CA that vouches for it; "" without TLS.
    """

    address: str
    token_file: Path
    ca_cert: str = ""


def token_file() -> Path:
    """Where `fednano serve` and `fednano ask` look for the token, if nothing else is said."""
    return cache_folder() / "serve.token"


@contextmanager
def open_asker(
    run: Path | str,
    which: str = "best",
    model: str = "",
    bundle: str = "",
    service: Service | None = None,
    config: Sequence[str] = (),
    max_tokens: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Asker]:
    """A run's tuned model, ready to be asked while the block runs.

    Args:
        run: folder of a run.
        which: adapters of its "best" or its "last" round.
        model: the run's model, where its config names another place.
        bundle: an edge bundle of it, instead of the checkpoint.
        service: has the language model; without, it is loaded in this process.
        config: changes of the run config as after `-c`; devices, for one.
        max_tokens: of a free answer; 0: the run's `max-answer-tokens`, or `MAX_TOKENS` if more.
        say: takes notices for people.

    Raises:
        ConfigError: run, model, bundle and service cannot be used, or do not belong together.
        HostRefusedError, HostUnreachableError: of the service.
    """
    found = load_run(run)
    for note in found.notes:
        say(note)
    settings = settings_of(found, config)
    devices = {"edge.device": settings.edge.device}
    if service is None:
        devices["llm.device"] = settings.llm.device
    for key, device in devices.items():
        describe_device(key, device, f"give {' '.join(f'-c {key}=cpu' for key in devices)}")
    at = model_of(settings.model, found.environment, model)
    with ExitStack() as stack:
        stack.enter_context(threads(settings.edge.threads))
        bundle = bundle or settings.edge.bundle
        half = load_edge_half(
            bundle or at.name,
            settings.edge.device,
            settings.edge.dtype,
            "" if bundle else at.revision,
        )
        _check_model(found, half)
        tuned, frozen = _edges(found, which, settings, half, say)
        host: LLMService
        if service is None:
            from fednano_flwr.llm.service import load_host  # the other half stays out otherwise

            host = Here(stack.enter_context(load_host(at.name, settings.llm, revision=at.revision)))
        else:
            host = stack.enter_context(_remote(service, settings))
            host.register(
                half.model, half.fingerprint, half.hidden_size, half.hub_id, half.revision
            )
        llm = exchange_of(settings, host)
        yield Asker(tuned, frozen, llm, max_tokens or settings.max_answer_tokens)


def settings_of(run: Run, config: Sequence[str]) -> RunConfig:
    """The run's config as asking uses it, with these changes.

    Threads are PyTorch's own: a run's are for many clients on one machine. An answer may be longer
    than the data's.

    Args:
        config: changes as after `-c`.

    Raises:
        ConfigError: asking does not read such a key, or it cannot have this value.
    """
    changes: dict[str, Any] = {}
    for text in config:
        changes |= parse_override(text, Path.cwd())
    for key in changes:
        if not key.startswith(READ):
            raise ConfigError(
                f"-c {key}: asking reads {', '.join(READ[:-1])} and {READ[-1]}; the rest is as the "
                "run had it"
            )
    own: dict[str, Any] = {
        "edge.threads": 0,
        "llm.threads": 0,
        "max-answer-tokens": max(MAX_TOKENS, run.config.max_answer_tokens),
    }
    changes = absolute_paths(changes, Path.cwd())
    if changes.get("dataset.path", run.config.dataset.path) != run.config.dataset.path:
        own["dataset.revision"] = ""  # a copy of it elsewhere
    elif commit := run.environment.get("dataset_revision"):
        own["dataset.revision"] = commit
    return RunConfig.parse(run.config.flat() | own | changes)


def _check_model(run: Run, half: EdgeHalf) -> None:
    """
    Raises:
        ConfigError: the run was of another model.
    """
    differs = other_model(run.environment, half.model, half.fingerprint, half.revision)
    if differs:
        raise ConfigError(
            f"{run.path}: {differs}: give the run's own model with --model, or its --bundle"
        )


def _edges(
    run: Run, which: str, config: RunConfig, half: EdgeHalf, say: Callable[[str], None]
) -> tuple[NanoEdge, NanoEdge]:
    """The client's half with the run's adapters, and with ones that change nothing."""
    if which not in ADAPTERS:
        raise ConfigError(f"--which {which}: must be one of {', '.join(ADAPTERS)}")
    if config.strategy.name == "locft":
        raise ConfigError(
            f"{run.path}: with strategy locft each client's adapters stay with the client, so the "
            "run has none to answer with"
        )
    state = run.adapters(which)
    if not any(value.any() for key, value in state.items() if "lora_B" in key):
        say(
            f"the {which} round's adapters change nothing: these are the frozen model's answers"
            + ("; --which last takes those of the last round" if which == "best" else "")
        )
    for caveat in caveats(config.strategy.name, config.adapter.ranks):
        say(caveat)
    table, encoder = half.token_table(), load_encoder(half.checkpoint)
    features = LastFeatures()
    edges = []
    for own in (state, None):
        adapters = build_adapters(half.hidden_size, config.adapter, config.seed)
        if own is not None:
            try:
                load_adapter_state(adapters, own)
            except ValueError as error:
                raise ConfigError(f"{run.path}: its adapters do not fit: {error}") from None
        edges.append(NanoEdge(half, table, adapters, encoder, features))
    return edges[0], edges[1]


def _remote(service: Service, config: RunConfig) -> RemoteLLM:
    """
    Raises:
        ConfigError: token or CA cannot be read, or the token would be open to others.
    """
    try:
        host, _ = address_to_dial(service.address)
    except ValueError as error:
        raise ConfigError(f"--llm {service.address}: must be HOST:PORT: {error}") from None
    if not service.ca_cert and not is_loopback(host):
        raise ConfigError(
            f"--llm {service.address}: without --ca-cert the connection is not encrypted, and "
            "question and token would be open to whoever reads along; without TLS only this "
            "machine (127.0.0.1, localhost, ::1) is asked, as at the end of an SSH tunnel"
        )
    return RemoteLLM(
        service.address,
        Caller(token=read_token(service.token_file)),
        config.exchange.dtype,
        config.exchange.timeout,
        RETRY_SECONDS,
        read_ca("--ca-cert", service.ca_cert) if service.ca_cert else None,
    )
