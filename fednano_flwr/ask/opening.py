"""From a run's folder to an `Asker`: both halves in this process, or only the client's."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fednano_flwr.adapters.host_map import rank_of
from fednano_flwr.adapters.site import build_adapters, load_adapter_state
from fednano_flwr.ask import MAX_TOKENS
from fednano_flwr.ask.asker import Asker
from fednano_flwr.base.resources import cache_folder
from fednano_flwr.config import ConfigError, Dataset, RunConfig, address_to_dial, is_loopback
from fednano_flwr.config.overrides import absolute_paths, parse_override
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.table import Questions
from fednano_flwr.edge.client import exchange_of
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.exchange.at_host import AtHost, HostLora
from fednano_flwr.exchange.errors import (
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
)
from fednano_flwr.exchange.protocol import Inputs, LLMInfo, LLMService
from fednano_flwr.exchange.wire.auth import FROZEN, read_token
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.tls import read_ca
from fednano_flwr.models.device import describe_device, threads
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.lora import digest_of
from fednano_flwr.runs.results import Run, load_run, other_model

RETRY_SECONDS = 5.0
"""How long a lost service is waited for."""
PICTURES = 8
"""Of the last so many pictures the features are kept."""
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
    for note in (*found.notes, *found.caveats):
        say(note)
    settings = settings_of(found, config)
    devices = {"edge.device": settings.edge.device}
    if service is None:
        devices["llm.device"] = settings.llm.device
    for key, device in devices.items():
        describe_device(key, device, f"give {' '.join(f'-c {key}=cpu' for key in devices)}")
    at = found.model(model, settings.model)
    with ExitStack() as stack:
        stack.enter_context(threads(settings.edge.threads))
        bundle = bundle or settings.edge.bundle
        half = load_edge_half(
            bundle or at.name,
            settings.edge.device,
            settings.edge.dtype,
            "" if bundle else at.revision,
            at.family,
        )
        differs = other_model(found.environment, half.model, half.fingerprint, half.revision)
        if differs:
            raise ConfigError(
                f"{found.path}: {differs}: give the run's own model with --model, or its --bundle"
            )
        state, inside = found.adapters(which), found.lora(which)
        lora = HostLora(inside) if inside else None
        if not any(value.any() for key, value in (state | inside).items() if "lora_B" in key):
            say(
                f"the {which} round's adapters change nothing: these are the frozen model's answers"
                + ("; --which last takes those of the last round" if which == "best" else "")
            )
        tuned, frozen = _edges(half, settings, state)
        host: LLMService
        frozen_host: LLMService
        if service is None:
            from fednano_flwr.llm.service import load_host  # the other half stays out otherwise

            loaded = load_host(
                at.name,
                settings.llm,
                revision=at.revision,
                family=at.family,
                lora=settings.adapter if lora else None,
                merged=lora,
            )
            host = frozen_host = LocalService(stack.enter_context(loaded))
            if lora:
                frozen_host = LocalService(loaded, AtHost(lora=lora.frozen()))
        else:
            host = frozen_host = remote = stack.enter_context(_remote(service, settings))
            info = remote.register(
                half.model, half.fingerprint, half.hidden_size, half.hub_id, half.revision
            )
            _check_lora(service, info.lora, found, which, digest_of(inside))
            if lora:
                frozen_host = stack.enter_context(_remote(service, settings, FROZEN))
        llm, frozen_llm = exchange_of(settings, host), exchange_of(settings, frozen_host)
        longest = max_tokens or settings.max_answer_tokens
        yield Asker(tuned, frozen, llm, longest, instruction_of(settings.dataset), frozen_llm)


def _check_lora(service: Service, served: str, run: Run, which: str, own: str) -> None:
    """
    Args:
        served: digest of the LoRA inside the service's language model; "" where it has none.
        own: of the run's, likewise.

    Raises:
        ConfigError: they differ.
    """
    if served != own:
        theirs, ours = (f"LoRA {one}" if one else "no LoRA" for one in (served, own))
        raise ConfigError(
            f"--llm {service.address}: the service's language model has {theirs} inside, and the "
            f"{which} round of {run.path} has {ours}: start the service with `fednano serve --run "
            f"{shlex.quote(str(run.path))} --which {which}`"
        )


def instruction_of(dataset: Dataset) -> str | None:
    """What follows a free question of a data set in the prompt; None for the usual."""
    return {"messages": "", "table": dataset.instruction}.get(dataset.name)


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


def shared_questions(run: Path | str, config: Sequence[str] = ()) -> Questions:
    """The test questions that a run's clients shared.

    Args:
        config: changes as after `-c`.

    Raises:
        ConfigError: the data set cannot be read here, or each client cut its own test questions.
    """
    dataset = settings_of(load_run(run), config).dataset
    if dataset.test_fraction:
        raise ConfigError(
            "this run has no test questions that its clients shared: each cut its own from its "
            f"training questions (dataset.test-fraction is {dataset.test_fraction:g})"
        )
    try:
        return load_questions(dataset).test
    except DataError as error:
        raise ConfigError(
            f"the run's test questions cannot be read: {error} Where the data set lies elsewhere "
            "on this machine, give -c dataset.path=DIR."
        ) from None


class LocalService(LLMService):
    """An `LLMService` in this process that refuses as one behind a wire does.

    Args:
        part: what its calls are computed with; None for the service's own.
    """

    def __init__(self, service: LLMService, part: AtHost | None = None) -> None:
        self._service, self._part = service, part

    def describe(self) -> LLMInfo:
        return self._service.describe()

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        if (part := self._part) is not None:
            arguments = tuple(a.through(part) if isinstance(a, Inputs) else a for a in arguments)
        try:
            return getattr(self._service, method)(*arguments, owner)
        except HostBusyError as busy:
            raise HostUnreachableError(str(busy)) from busy
        except ValueError as refusal:
            raise HostRefusedError(str(refusal)) from refusal


class LastFeatures(dict[str, Tensor]):
    """Features of the last pictures; those of older ones are computed anew."""

    def __setitem__(self, key: str, value: Tensor) -> None:
        super().__setitem__(key, value)
        if len(self) > PICTURES:
            del self[next(iter(self))]


def _edges(
    half: EdgeHalf, config: RunConfig, state: dict[str, Tensor]
) -> tuple[NanoEdge, NanoEdge]:
    """The client's half with these adapters, and with adapters that change nothing."""
    table, encoder, features = half.token_table(), load_encoder(half.checkpoint), LastFeatures()
    tuned, frozen = (
        build_adapters(half.hidden_size, adapter, config.seed, sites=half.sites)
        for adapter in (config.adapter.at(rank_of(state)), config.adapter)
    )
    try:
        load_adapter_state(tuned, state)
    except ValueError as error:
        raise ConfigError(f"the run's adapters do not fit its adapter.*: {error}") from None
    return (
        NanoEdge(half, table, tuned, encoder, features),
        NanoEdge(half, table, frozen, encoder, features),
    )


def _remote(service: Service, config: RunConfig, phase: str = "") -> RemoteLLM:
    """
    Args:
        phase: see `Caller`.

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
        Caller(phase=phase, token=read_token(service.token_file)),
        config.exchange.dtype,
        config.exchange.timeout,
        RETRY_SECONDS,
        read_ca("--ca-cert", service.ca_cert) if service.ca_cert else None,
    )
