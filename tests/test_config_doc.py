"""docs/config.md against the config itself."""

from __future__ import annotations

import re
from pathlib import Path

from fednano_flwr.config import key_types
from fednano_flwr.config.docs import with_tables
from fednano_flwr.config.project import defaults

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_declarations_and_have_every_key_once() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == with_tables(page), "run python -m fednano_flwr.config.docs docs/config.md"
    assert sorted(re.findall(r"^\| `([^`]+)` \| \w+ \| `", page, re.M)) == sorted(key_types())


def test_defaults_have_the_types_of_the_config() -> None:
    for key, value in defaults(ROOT).items():
        assert type(value) is key_types()[key], key
