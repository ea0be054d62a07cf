"""Tables in the docs are those of the audits that are kept beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.audit.tables import COLUMNS, markdown
from fednano_flwr.config.overrides import parse_override

ROOT = Path(__file__).parents[2]
RESULTS = "results/privacy/audit-demo.json"
TABLE = re.compile(rf"<!-- {re.escape(RESULTS)} -->\n((?:\|.*\|\n)+)")


def results() -> dict[str, Any]:
    return json.loads((ROOT / RESULTS).read_text(encoding="utf-8"))


def tables(page: str) -> list[str]:
    found = TABLE.findall((ROOT / page).read_text(encoding="utf-8"))
    assert found, "no table is marked"
    return found


def test_the_audits_page_has_all_of_the_results() -> None:
    assert tables("docs/audit.md") == [markdown(results()["rows"])]


def test_the_threat_model_quotes_some_of_the_results() -> None:
    whole = {tuple(write(row) for write in COLUMNS.values()) for row in results()["rows"]}
    names = list(COLUMNS)
    for table in tables("docs/threat-model.md"):
        head, _, *lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        places = [names.index(heading) for heading in head]
        assert len(lines) >= 3
        for line in lines:
            assert tuple(line) in {tuple(row[place] for place in places) for row in whole}


@pytest.mark.parametrize(
    "file", sorted((ROOT / "conf/privacy").glob("*.toml")), ids=lambda f: f.stem
)
def test_every_config_of_the_table_is_in_it(file: Path) -> None:
    given = parse_override(str(file), ROOT)
    wanted = tuple(
        given.get(key, default)
        for key, default in (
            ("exchange.kind", "lowrank"),
            ("exchange.labels-at", "server"),
            ("privacy.embedding-clip", 0.0),
            ("privacy.embedding-noise", 0.0),
        )
    )
    rows = {(r["exchange"], r["labels_at"], r["clip"], r["noise"]) for r in results()["rows"]}
    assert wanted in rows
