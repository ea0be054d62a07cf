"""docs/config.md against the config itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from fednano_flwr.config import key_types
from fednano_flwr.config.project import defaults

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"\| `([^`]+)` \| (\w+) \| `([^`]+)` \| (.+) \|")


def rows() -> list[tuple[str, ...]]:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    return [match.groups() for line in text.splitlines() if (match := ROW.fullmatch(line))]


def test_every_key_is_in_the_doc_once_with_its_type():
    documented = [(key, kind) for key, kind, _, _ in rows()]
    assert sorted(documented) == sorted((k, t.__name__) for k, t in key_types().items())


def test_the_documented_defaults_are_those_of_pyproject():
    documented = {key: tomllib.loads(f"v = {default}")["v"] for key, _, default, _ in rows()}
    assert documented == defaults(ROOT)


def test_defaults_have_the_types_of_the_config():
    for key, value in defaults(ROOT).items():
        assert type(value) is key_types()[key], key
