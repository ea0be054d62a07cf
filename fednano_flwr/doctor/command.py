"""`fednano doctor`: look at a machine as one of `ROLES`, theme by theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fednano_flwr.config import ConfigError, RunConfig, address_to_dial
from fednano_flwr.doctor.finding import Finding, Section, look
from fednano_flwr.doctor.node import Node, read_node

if TYPE_CHECKING:
    from fednano_flwr.doctor.subject import Themes

ROLES = ("simulation", "server", "client")


@dataclass(frozen=True)
class Asked:
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


def role_of(asked: Asked) -> str:
    """As what the machine is looked at.

    Raises:
        ConfigError: the options do not fit together, or an address is none.
    """
    for option, text in (("--superlink", asked.superlink), ("--llm", asked.llm)):
        if text is not None:
            try:
                address_to_dial(text)
            except ValueError as error:
                raise ConfigError(f"{option} {error}") from None
    if asked.role is None:
        return "simulation" if asked.node_config is None else "client"
    if asked.role not in ROLES:
        raise ConfigError(f"--role {asked.role}: must be one of {', '.join(ROLES)}")
    if asked.role != "client" and asked.node_config is not None:
        raise ConfigError(
            f"--role {asked.role} with --node-config, which is a client's: leave one out"
        )
    return asked.role


def examine(asked: Asked, role: str, cwd: Path) -> list[Section]:
    """All findings, of every theme; nothing is changed on the machine."""
    text = asked.node_config
    node, of_text = (Node(), []) if text is None else read_node(text)
    config: RunConfig | None = None
    themes: Themes = {}

    def installed() -> list[Finding]:
        from fednano_flwr.doctor.versions import check_installed, check_programs

        return [*check_installed(), *check_programs()]

    def settings() -> list[Finding]:
        nonlocal config
        from fednano_flwr.doctor.settings import read_settings

        config, found = read_settings(asked.app, asked.overrides, cwd, role == "client")
        return found

    def prepare() -> list[Finding]:
        nonlocal themes
        from fednano_flwr.doctor import client, server, simulation
        from fednano_flwr.doctor.subject import Subject

        subject = Subject(config, node, asked.superlink, asked.llm)
        by_role = {"simulation": simulation, "server": server, "client": client}
        themes = by_role[role].checks(subject)
        return []

    sections = {"versions": look("the installed packages", installed)}
    sections["run config"] = look("the run config", settings)
    sections["run config"] += look("what to look at", prepare)
    sections["node config"] = of_text
    for theme, checks in themes.items():
        found = [finding for name, check in checks for finding in look(name, check)]
        sections.setdefault(theme, []).extend(found)
    return [Section(theme, findings) for theme, findings in sections.items()]
