"""docs/metrics.md says what is in a line of metrics.jsonl."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr import client_app, server_app
from fednano_flwr.config import RunConfig
from tests.local_grid import LocalGrid

DOC = Path(__file__).parents[1] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `([\w.]+)` \| ([\w ]+) \| [^|]*\| [^|]+\|$", re.MULTILINE)
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float,),
    "float or null": (float, type(None)),
    "object": (dict,),
    "list": (list,),
}


@pytest.fixture(scope="module")
def documented() -> dict[str, str]:
    """Field to type, in the table's order."""
    page = DOC.read_text(encoding="utf-8")
    return dict(ROW.findall(page.partition("\n## Trackers\n")[0]))


def fields(record: dict[str, Any], whole: set[str], prefix: str = "") -> dict[str, Any]:
    """Values by name, but for objects that are no field as a `whole`."""
    found = {}
    for key, value in record.items():
        if isinstance(value, dict) and prefix + key not in whole:
            found |= fields(value, whole, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def test_the_table_has_every_field_with_its_type_and_no_other(
    documented: dict[str, str], run_config: Callable[..., dict[str, Any]]
) -> None:
    flat = run_config(num_server_rounds=1, local_epochs=1)
    folder = server_app.federate(LocalGrid(client_app.app, flat, 2), 1, RunConfig.parse(flat))
    objects = {name for name, kind in documented.items() if kind == "object"}
    for line in (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        found = fields(json.loads(line), objects)
        assert list(found) == list(documented)
        for name, value in found.items():
            assert type(value) in TYPES[documented[name]], name
