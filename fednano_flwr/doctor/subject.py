"""What is to be looked at, and the checks that both roles ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.doctor import machine, network
from fednano_flwr.doctor.finding import Check, Finding, warning
from fednano_flwr.doctor.node import Node

Themes = dict[str, list[tuple[str, Check]]]
"""Of each theme the checks: in words what is looked at, and how."""


@dataclass(frozen=True)
class Subject:
    """A machine as it was described on the command line.

    Attributes:
        config: None where there is none that can be read.
        node: empty at a server.
        superlink, llm: `host:port` to try; None for not at all.
        simulated: `fednano run` starts Flower's programs here.
    """

    config: RunConfig | None
    node: Node
    superlink: str | None
    llm: str | None
    simulated: bool = False


def dialled(subject: Subject, ca_key: str, ca_path: str) -> list[tuple[str, Check]]:
    """The checks of proxies, and of the addresses that are to be tried.

    Args:
        ca_key, ca_path: what names the CA that clients trust, and its file; "" for none.
    """
    checks: list[tuple[str, Check]] = [
        ("proxies", partial(network.check_proxies, subject.simulated))
    ]
    if subject.superlink is not None:
        superlink = partial(network.check_superlink, subject.superlink)
        checks.append(("the SuperLink", superlink))
    if subject.llm is not None:
        service = partial(_check_llm, subject.llm, ca_key, ca_path)
        checks.append(("the LLM service", service))
    return checks


def threads(key: str, count: int) -> tuple[str, Check]:
    """The check of a number of threads."""
    from fednano_flwr.config.machine import cpus

    return "processors", lambda: machine.check_threads(key, count, cpus())


def _check_llm(address: str, ca_key: str, ca_path: str) -> list[Finding]:
    """As `network.check_llm`, with the CA's file."""
    from fednano_flwr.exchange.wire.tls import read_ca

    try:
        ca = read_ca(ca_key, ca_path) if ca_path else None
    except ConfigError:
        return [
            warning(
                f"LLM service at {address}: not tried, as {ca_key} cannot be used",
                "see what is said of it under certificates",
            )
        ]
    return network.check_llm(address, ca, ca_key)
