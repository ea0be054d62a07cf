"""Rows as the lines of tables and pictures: a method at a setting, at what tuning chose."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.merging_study.plan import CORE, FEDAVG, PARTS, Choice, Setting, part_of
from benchmarks.merging_study.rows import Row
from fednano_flwr.analysis.statistics import LEVEL, Spread, paired, spread


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        shown: of the part's options, those of this line.
        choice: of tuning; None until it is complete.
        rows: of test questions, by seed.
        apart: accuracy less fedavg's with the same options, of each seed that both have.
        comparisons: of the table.
    """

    method: str
    shown: str
    choice: Choice | None
    rows: list[Row]
    apart: list[float]
    comparisons: int

    @property
    def difference(self) -> Spread:
        """Its interval holds for all comparisons of the table together, by Bonferroni."""
        return spread(self.apart, 1 - (1 - LEVEL) / self.comparisons) if self.apart else Spread()

    def spread(self, key: str) -> Spread:
        """Over seeds, of a field of the rows."""
        return spread([getattr(row, key) for row in self.rows])

    @property
    def by_round(self) -> list[float]:
        """Mean accuracy over seeds in each round from 0 on."""
        rounds = [row.rounds for row in self.rows]
        return [statistics.fmean(each) for each in zip(*rounds, strict=True)]


def lines_of(name: str, setting: Setting, rows: Sequence[Row]) -> list[Line]:
    """The lines of a part at one setting."""
    part, known = part_of(name, rows), {row.cell: row for row in rows}
    base = part if FEDAVG in part.methods else PARTS[CORE]
    found = []
    for method, shown in itertools.product(part.methods, part.shown):
        mine, theirs = (
            [known[cell] for cell in of.test(one, setting, shown, rows) if cell in known]
            for of, one in ((part, method), (base, FEDAVG))
        )
        ours, other = ({row.dealt_seed: row.accuracy for row in each} for each in (mine, theirs))
        apart = [] if method == FEDAVG else list(paired(ours, other).values())
        choice = part.choice(method, setting.clients, rows)
        found.append(Line(method, shown, choice, mine, apart, part.comparisons))
    return found
