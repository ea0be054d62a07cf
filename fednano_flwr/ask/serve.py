"""`fednano serve`: the language model's half alone, up until it is stopped, for questions only."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError, LLMConfig, Model
from fednano_flwr.exchange.at_host import AtHost, HostLora
from fednano_flwr.exchange.protocol import LLMInfo, LLMService
from fednano_flwr.exchange.wire.auth import FixedToken, make_token, read_token
from fednano_flwr.exchange.wire.nodes import NodeLimits
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import read_identity
from fednano_flwr.llm.metrics import open_metrics
from fednano_flwr.llm.service import load_host
from fednano_flwr.preflight import config_of
from fednano_flwr.runs.results import Run, other_model

ANY = ("0.0.0.0", "::")


TRAINING = ("step", "forward", "backward", "begin", "end", "forget_sessions")


class AnswersOnly(LLMService):
    """An `LLMService` that generates and scores, and answers nothing that training needs."""

    def __init__(self, service: LLMService) -> None:
        self._service = service

    def describe(self) -> LLMInfo:
        return self._service.describe()

    def forget_sessions(self) -> None:
        self._call("forget_sessions", b"")

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        if method in TRAINING:
            raise ValueError("this LLM service answers questions and takes no part in training")
        return getattr(self._service, method)(*arguments, owner)


def llm_config(
    app: Path, given: Mapping[str, object], overrides: Sequence[str], cwd: Path
) -> LLMConfig:
    """The run config's `llm.*`: its defaults, then `-c`, then the command's own options.

    Threads are PyTorch's own unless they are given.

    Args:
        given: values by key without "llm."; None where an option was not used.

    Raises:
        ConfigError: a value that cannot be used, an unencrypted port beyond loopback for one.
    """
    own = [f"llm.{key}={value}" for key, value in given.items() if value is not None]
    if given.get("bind") in ANY and not any(o.startswith("llm.address") for o in overrides):
        own.append(f"llm.address={socket.gethostname()}:{given.get('port') or 0}")
    config = config_of(app, ["llm.threads=0", *overrides, *own], cwd).llm
    if config.replicas > 1:
        raise ConfigError(f"llm.replicas = {config.replicas}: `fednano serve` runs one")
    return config


@contextmanager
def serving(
    model: str,
    config: LLMConfig,
    token_file: Path,
    say: Callable[[str], None],
    revision: str = "",
    family: str = "",
    run: Run | None = None,
    which: str = "best",
) -> Iterator[str]:
    """The service while the block runs; yields where it listens, `host:port`.

    Args:
        model: "" for that of `run`.
        revision: branch, tag or commit of a model on the hub; with `run` it has its own.
        family: `model.family`, likewise.
        token_file: of the token; made where it is missing.
        run: whose LoRA, where it has trained one inside the language model, calls are computed
            with.
        which: that of its "best" or its "last" round.

    Raises:
        ConfigError: model, run, device, certificate or token cannot be used.
        OSError: the port, or that of the metrics, is taken.
    """
    from fednano_flwr.models.device import describe_device

    describe_device("llm.device", config.device, "give --device cpu to use the CPU")
    identity = read_identity(config)
    at = run.model(model) if run else Model(model, revision, family)
    values = run.lora(which) if run else {}
    lora = HostLora(values) if values else None
    made = make_token(token_file)
    tokens = FixedToken(read_token(token_file), AtHost(lora=lora.frozen()) if lora else None)
    # All who have the token are one node, so the bounds of all nodes together are theirs.
    with (
        open_metrics(config.metrics, say) as metrics,
        load_host(
            at.name,
            config,
            0,
            metrics,
            at.revision,
            0,
            at.family,
            run.config.adapter if run and lora else None,
            lora,
        ) as host,
    ):
        info = host.describe()
        if run and (
            differs := other_model(run.environment, info.model, info.fingerprint, info.revision)
        ):
            raise ConfigError(f"{run.path}: {differs}: give the run's own model")
        limits = NodeLimits(config.node_requests_per_second, config.max_clients)
        with serve(
            AnswersOnly(host),
            config.bind,
            config.port,
            config.max_clients,
            tokens,
            identity,
            limits,
            metrics=metrics,
        ) as address:
            quantized = "" if config.quantization == "none" else f", {config.quantization}"
            say(
                f"model    {info.model} (fingerprint {info.fingerprint}), {info.parameters:,} "
                f"parameters, frozen; {info.dtype}{quantized} on {config.device}"
            )
            if run and lora:
                say(f"lora     {info.lora}, inside it, of {run.path}'s {which} round")
            secured = "TLS" if identity else "no TLS, so this machine only"
            if not identity and config.insecure_beyond_loopback:
                secured = "no TLS: whoever can read along sees questions and token"
            say(f"listens  {address} ({secured})")
            say(f"token    {token_file} ({'made now' if made else 'as it was'})")
            yield address
