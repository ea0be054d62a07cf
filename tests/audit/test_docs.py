"""Tables in the docs are those of the audits that are kept beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.audit.tables import COLUMNS, markdown

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
