"""`fednano doctor`: the preflight's checks one by one, and what only doctor looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError, Model, RunConfig, address_to_dial
from fednano_flwr.config.machine import cpus
from fednano_flwr.config.node import NodeConfig
from fednano_flwr.config.project import find_app
from fednano_flwr.doctor import certificates, files, machine, network
from fednano_flwr.doctor.finding import (
    TO_DOWNLOAD,
    Finding,
    Look,
    Section,
    look,
    ok,
    problem,
    warning,
)
from fednano_flwr.doctor.node import read_node
from fednano_flwr.preflight import (
    PROCESSOR,
    Check,
    check_device,
    check_own_data,
    check_processor,
    client_checks,
    client_files,
    config_of,
    preferred,
    server_checks,
)

ROLES = ("simulation", "server", "client")
THEMES = (
    *("versions", "run config", "node config", "data", "model", "folders"),
    *("certificates", "network", "machine"),
)


@dataclass(frozen=True)
class DoctorOptions:
    """The command line.

    Attributes:
        role: one of `ROLES`; None: a client where there is a node config, else a simulation.
        app: folder of the app; None is the current or the installed one.
        overrides: of the run config.
        node_config: what the SuperNode is given as `--node-config`; None for none.
        superlink, llm: `host:port` to try; None for not at all.
    """

    role: str | None = None
    app: Path | None = None
    overrides: Sequence[str] = ()
    node_config: str | None = None
    superlink: str | None = None
    llm: str | None = None


def role_of(options: DoctorOptions) -> str:
    """The role that the machine is looked at for.

    Raises:
        ConfigError: the options do not fit together, or an address is none.
    """
    for option, text in (("--superlink", options.superlink), ("--llm", options.llm)):
        if text is not None:
            try:
                address_to_dial(text)
            except ValueError as error:
                raise ConfigError(f"{option} {error}") from None
    if options.role is None:
        return "simulation" if options.node_config is None else "client"
    if options.role not in ROLES:
        raise ConfigError(f"--role {options.role}: must be one of {', '.join(ROLES)}")
    if options.role != "client" and options.node_config is not None:
        raise ConfigError(
            f"--role {options.role} with --node-config, which is a client's: leave one out"
        )
    return options.role


def examine(options: DoctorOptions, role: str, cwd: Path) -> list[Section]:
    """All findings, of every theme; nothing is changed on the machine."""
    themes: dict[str, list[Finding]] = {theme: [] for theme in THEMES}
    config, themes["run config"] = _read_config(options, role, cwd)
    node = None if role == "simulation" else NodeConfig()
    if options.node_config is not None:
        node, themes["node config"] = read_node(options.node_config)
    with _offline() as downloads:
        checks = _checks(options, role, config, node)
        for check in sorted(checks, key=lambda check: check.subject == PROCESSOR):
            known = themes[check.theme]
            if check.subject == PROCESSOR and any(finding.do == TO_DOWNLOAD for finding in known):
                continue  # it will come with the weights
            known += [finding for finding in look(check, downloads) if finding not in known]
    return [Section(theme, findings) for theme, findings in themes.items()]


@contextmanager
def _offline() -> Iterator[bool]:
    """Keep the hub's client from its network, and say whether a run's may ask the hub."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield not before
    finally:
        constants.HF_HUB_OFFLINE = before


def _read_config(
    options: DoctorOptions, role: str, cwd: Path
) -> tuple[RunConfig | None, list[Finding]]:
    """The run config, or None where there is none that can be read, and what is wrong with it."""
    try:
        folder = find_app(options.app, cwd)
    except ConfigError as error:
        if role == "client" and options.app is None and not options.overrides:
            what = "the run config is not known here: what depends on it is not looked at"
            do = "give the app's folder with --app, and with -c what the server's run changes"
            return None, [warning(what, do)]
        return None, [problem(str(error))]
    try:
        return config_of(folder, options.overrides, cwd), [ok(f"the run config of {folder}")]
    except ConfigError as error:
        do = "until it is right, what depends on the run config is not looked at"
        return None, [problem(str(error), do)]


def _checks(
    options: DoctorOptions, role: str, config: RunConfig | None, node: NodeConfig | None
) -> list[Check[str] | Look]:
    """What to look at; `node` is None in a simulation."""
    spared = role == "simulation"  # `fednano run` starts Flower's programs
    checks: list[Check[str] | Look] = [
        _look("versions", "the installed packages", machine.check_installed),
        _look("versions", "Flower's programs", machine.check_programs),
        _look("certificates", "the clock", machine.check_clock, time.time()),
        _look("network", "proxies", network.check_proxies, spared),
    ]
    if config is not None and role != "client":
        checks += [*server_checks(config), *_of_server(config)]
    if role != "server":
        checks += _of_client(config, node)
    if options.superlink is not None:
        superlink = options.superlink
        checks.append(_look("network", "the SuperLink", network.check_superlink, superlink))
    if options.llm is not None:
        ca = preferred(config, node, "ca-cert")
        checks.append(_look("network", "the LLM service", network.check_llm, options.llm, *ca))
    return checks


def _look(theme: str, subject: str, find: Callable[..., list[Finding]], *arguments: Any) -> Look:
    return Check(theme, subject, partial(find, *arguments))


def _of_server(config: RunConfig) -> list[Look]:
    """What only doctor looks at on a server's machine."""
    llm, ca, tls = config.llm, config.exchange.ca_cert, "certificates"
    dates, threads = certificates.check_dates, machine.check_threads
    return [
        _look("folders", "room in run.dir", files.check_run_room, config),
        _look("folders", "temporary files", files.check_temporary),
        _look(tls, "llm.tls-cert", dates, "llm.tls-cert", llm.tls_cert),
        _look(tls, "llm.tls-key", files.check_private, "llm.tls-key", llm.tls_key),
        _look(tls, "exchange.ca-cert", dates, "exchange.ca-cert", ca),
        _look(tls, "clients' trust", certificates.check_trust, llm, ca),
        _look("network", "llm.bind", network.check_listening, llm),
        _look("network", "llm.address", network.check_address, llm),
        _look("network", "llm.metrics", network.check_metrics, llm),
        _look("machine", "llm.threads", threads, "llm.threads", llm.threads, cpus()),
        _look("machine", "memory of the server", machine.check_server_memory, config),
        _look("machine", "open files", machine.check_open_files, llm.max_clients),
    ]


def _of_client(config: RunConfig | None, node: NodeConfig | None) -> list[Check[str] | Look]:
    """A client's checks and what only doctor looks at; without a run config, the node's alone."""
    device = preferred(config, node, "device")
    key, bundle = preferred(config, node, "edge-path")
    shard = node.data_path if node else None
    checks: list[Check[str] | Look] = []
    if config is not None:
        edge, rank = config.edge, node.adapter_rank if node else None
        threads, memory = machine.check_threads, machine.check_client_memory
        checks += [
            *client_checks(config, node),
            *client_files(config, node, write=False),
            _look("folders", "the client's folders", files.check_client_folders, config),
            _look("machine", "edge.threads", threads, "edge.threads", edge.threads, cpus()),
            _look("machine", "memory of the client", memory, config, *device, bundle, rank),
        ]
    else:
        if shard:
            checks.append(Check("data", "the questions", partial(check_own_data, shard, None)))
        if bundle:
            checks.append(Check("model", PROCESSOR, partial(check_processor, Model(bundle))))
        if device[1]:
            checks.append(Check("machine", device[0], partial(check_device, *device)))
    ca = preferred(config, node, "ca-cert")
    checks.append(_look("certificates", "the CA's dates", certificates.check_dates, *ca))
    if shard:
        checks.append(_look("data", "pictures", files.check_pictures, shard, config))
    if shard and bundle:
        own = (key, bundle, shard, config)
        checks.append(_look("model", "the bundle's tokens", files.check_tokens, *own))
    return checks
