"""The commands of docs/deploy.md: its blocks, the machine each is for, its variables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from tests.conftest import REPOSITORY

FILE = REPOSITORY / "docs" / "deploy.md"
BLOCK = re.compile(r"^```\n# ([^\n]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARIABLE = re.compile(r"^([A-Z_]+)=([^\s$]+)", re.MULTILINE)
EVERYONE, SERVER, CLIENTS = "every machine", "server", "each client"


@dataclass(frozen=True)
class Block:
    """Commands, for whom, and whether the last of them ends only when it is ended."""

    machine: str
    script: str
    stays: bool


def blocks() -> tuple[str, list[Block]]:
    """The block of variables, and all others in the order of the page."""
    text = FILE.read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert text.count("```") == 2 * len(found), "a block that is not marked with a machine"
    (everyone, variables), *rest = found
    assert everyone == EVERYONE
    parsed = []
    for title, script in rest:
        machine, comma, stays = title.partition(", ")
        assert machine in (SERVER, CLIENTS) and stays == ("stays running" if comma else ""), title
        parsed.append(Block(machine, script, bool(comma)))
    return variables, parsed


def defaults(variables: str) -> dict[str, str]:
    """The variables that the page gives a value without naming another."""
    return dict(VARIABLE.findall(variables))


def with_values(variables: str, values: Mapping[str, object]) -> str:
    """The block of variables with other values for some of those that it has."""
    assert values.keys() <= defaults(variables).keys()

    def put(match: re.Match[str]) -> str:
        name, value = match.groups()
        return f"{name}={shlex.quote(str(values.get(name, value)))}"

    return VARIABLE.sub(put, variables)
