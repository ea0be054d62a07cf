"""Rows as tables of docs/merging.md."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from benchmarks.merging_study.lines import Line, lines_of
from benchmarks.merging_study.plan import FEDAVG, Part, Setting, part_of
from benchmarks.merging_study.rows import MANY, Row
from benchmarks.report import table
from benchmarks.study import marks
from benchmarks.study.plan import ROOT
from fednano_flwr.analysis.experiments.tables import difference
from fednano_flwr.analysis.statistics import LEVEL
from fednano_flwr.base.files import replace_file

PAGE = ROOT / "docs" / "merging.md"
NAME = "merging-study"
NOT_RUN = "not run"


def write_page(rows: Sequence[Row]) -> None:
    """Make the page's tables anew."""
    replace_file(PAGE, with_tables(PAGE.read_text("utf-8"), rows).encode())


def with_tables(page: str, rows: Sequence[Row]) -> str:
    """The page with each table between `<!-- merging-study: KIND PART,CLIENTS,ALPHA -->` and
    `<!-- end -->`; kinds are `methods` and `rates`."""

    def of(subject: str) -> tuple[str, Setting, Sequence[Row]]:
        name, clients, alpha = subject.split(",")
        return name, Setting(int(clients), float(alpha)), rows

    kinds = {
        "methods": lambda subject: methods_table(*of(subject)),
        "rates": lambda subject: rates_table(*of(subject)),
    }
    return marks.with_tables(page, NAME, kinds)


def methods_table(name: str, setting: Setting, rows: Sequence[Row]) -> str:
    """All methods of a part at one setting, and what is to be said of them."""
    part, lines = part_of(name, rows), lines_of(name, setting, rows)
    lowest = "lowest tenth of clients" if setting.clients >= MANY else "worst client"
    heads = ["", "rate", "seeds", "accuracy, %", f"against {FEDAVG}", f"{lowest}, %"]
    heads += ["upload kB a round", "step MB a round"]
    heads += ["ε"] if any(row.epsilon is not None for line in lines for row in line.rows) else []
    cells = [[*(each := _cells(line)), *[""] * (len(heads) - len(each))] for line in lines]
    return "\n".join([table(heads, cells), "", *remarks(part, setting, lines)])


def _cells(line: Line) -> list[str]:
    label, rate = f"`{line.method}` {line.shown}".strip(), str(line.choice or "")
    if not line.rows:
        return [label, rate, NOT_RUN]
    found, epsilon = line.difference, line.rows[0].epsilon
    costs = (line.spread(key).mean or 0.0 for key in ("upload_kb_a_round", "step_mb_a_round"))
    return [
        *(label, rate, str(len(line.rows)), str(line.spread("accuracy"))),
        "–" if found.low is None else difference(dataclasses.asdict(found)),
        str(line.spread("worst_client")),
        *(f"{cost:.0f}" if cost >= 100 else f"{cost:.1f}" for cost in costs),
        *([] if epsilon is None else [f"{epsilon:.2f}"]),
    ]


def remarks(part: Part, setting: Setting, lines: Sequence[Line]) -> list[str]:
    """What a reader has to know to read a table right."""
    found = [
        "- In brackets: Student's interval of the difference seed by seed. It holds for all "
        f"{part.comparisons} comparisons of this table together with {100 * LEVEL:.0f} % "
        "(Bonferroni). A seed draws questions, shards, first adapters and order."
    ]
    ends = min(part.rates[setting.clients]), max(part.rates[setting.clients])
    edge = [f"`{line.method}`" for line in lines if line.choice and line.choice.rate in ends]
    if edge:
        names = ", ".join(dict.fromkeys(edge))
        found.append(f"- At an end of its rates, so that a better one may lie beyond: {names}.")
    moved = {(row.seed, row.dealt_seed) for line in lines for row in line.rows}
    for seed, dealt in sorted(pair for pair in moved if len(set(pair)) > 1):
        found.append(f"- Seed {seed} cannot be dealt; {dealt} took its place.")
    if any(0 < len(line.rows) < len(part.seeds) for line in lines):
        found.append("- NOT ALL SEEDS HAVE BEEN RUN, so means are over different seeds.")
    return found


def rates_table(name: str, setting: Setting, rows: Sequence[Row]) -> str:
    """Validation accuracy of what was tried, mean of the last rounds and seeds; bold: chosen."""
    part, known = part_of(name, rows), {row.cell: row.last_rounds for row in rows}
    lines = []
    for method in part.methods:
        best = part.choice(method, setting.clients, rows)
        lines.append([f"`{method}`"])
        for choice, tried in part.tuning(method, setting.clients).items():
            found = [known[cell] for cell in tried if cell in known]
            text = f"{statistics.fmean(found):.1f}" if len(found) == len(tried) else NOT_RUN
            lines[-1].append(f"**{text}**" if choice == best else text)
    return table(["", *map(str, part.tuning(FEDAVG, setting.clients))], lines)
