"""Tables in README and docs are those of the results that are kept beside them.

A table under a line `<!-- results/NAME.json -->` has an experiment a row; a column's heading is a
quantity, a setting (`α = 0.1`, `clients = 20, α = 0.1`), or both joined by a comma.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.analysis.experiments.tables import difference, points

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": True, "docs/merging.md": True, "docs/exchange.md": False}
"""Pages with tables, and whether there has to be one."""
MARK = r"<!-- (results/\S+\.json) -->\n"
SPREADS = {"accuracy": "accuracy", "worst client": "worst", "all questions": "all"}
NUMBERS = {"upload kB a round": "upload_kb_a_round", "step MB a round": "step_mb_a_round"}

Table = tuple[str, list[str], list[list[str]]]


def tables(text: str) -> Iterator[Table]:
    """(results file, headings, rows) of every marked table of a page."""
    for found in re.finditer(MARK + r"((?:\|.*\|\n)+)", text):
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in found[2].strip().splitlines()
        ]
        yield found[1], head[1:], rows


def expected(results: dict[str, Any], experiment: str, heading: str) -> str:
    """A cell as it has to be."""
    parts = heading.replace("α", "alpha").split(", ")
    label = ",".join(part.replace(" ", "") for part in parts if "=" in part)
    quantity = next((part for part in parts if "=" not in part), "accuracy")
    rows = [r for r in results["rows"] if (r["experiment"], r["setting"]) == (experiment, label)]
    assert len(rows) == 1, (experiment, label)
    if quantity.startswith("against "):
        baseline = quantity.removeprefix("against ")
        if experiment == baseline:
            return "–"
        key = f"{experiment}-vs-{baseline}" + (f"@{label}" if label else "")
        pair = results["paired"][key]
        # An interval where there are enough seeds for one to say something.
        return points(pair["mean"]) if len(pair["seeds"]) < 3 else difference(pair)
    if quantity in NUMBERS:
        return f"{rows[0][NUMBERS[quantity]]:.3g}"
    found = rows[0][SPREADS[quantity]]
    return f"{found['mean']:.1f} ± {found['stdev']:.1f}"


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_tables_show_what_their_results_hold(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(tables(text))
    assert len(found) == len(re.findall(r"<!-- results/", text)), "a mark without its table"
    assert found or not PAGES[page], "no table is marked"
    for file, headings, rows in found:
        results = json.loads((ROOT / file).read_text(encoding="utf-8"))
        assert not results["failed"]
        for experiment, *cells in rows:
            name = experiment.strip("*").strip("`")
            should = [expected(results, name, heading) for heading in headings]
            assert [cell.strip("*") for cell in cells] == should, (file, name)


def test_the_main_table_compares_the_default_with_fedavg() -> None:
    results = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))
    labels = {setting["label"] for setting in results["settings"]}
    for label in labels:
        pair = results["paired"][f"default-vs-fedavg@{label}"]
        assert pair["low"] < pair["mean"] < pair["high"] and len(set(pair["seeds"])) == 5
    assert len({row["experiment"] for row in results["rows"]}) >= 7
    assert {label.rpartition("alpha=")[2] for label in labels} == {"0.1", "1"}
    assert {row["setting"] for row in results["rows"]} == labels
    assert all(len(set(row["seeds"])) == 5 for row in results["rows"])
