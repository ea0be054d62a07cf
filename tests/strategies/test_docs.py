"""docs/strategies.md against the code."""

import re
from pathlib import Path
from typing import Any

from fednano_flwr.strategies.registry import FLOWER, OWN

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")


def test_every_strategy_is_on_the_page(defaults: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `([^`]+)`( \(default\))? \|.*\|.*\|.*\|.*\|$", PAGE, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(OWN)
    assert [name for name, marked in rows if marked] == [defaults["strategy.name"]]
    assert all(f"`{name}`" in PAGE for name in FLOWER)
