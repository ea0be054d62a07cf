"""The parts of the study: methods × settings × seeds, each method at a rate that was tuned."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.merging_study.rows import Cell, Row
from benchmarks.study.plan import least

FEDAVG = "fedavg"
DEMO, EASY = "demo", "easy"
"""What is learned: the demo's questions, or easy-VQA's in front of a real LLM."""
LOWER, HIGHER = (0.001, 0.002, 0.005, 0.01), (0.002, 0.005, 0.01, 0.02)


class Setting(NamedTuple):
    """A table of the study."""

    clients: int
    alpha: float


class Choice(NamedTuple):
    """What tuning chooses: a rate, and options where the part tunes some."""

    rate: float
    options: str

    def __str__(self) -> str:
        return f"{self.rate:g} {self.options}".strip()


@dataclass(frozen=True)
class Part:
    """Methods that are compared with one another, all at the same settings and budget.

    Attributes:
        rates: by number of clients; of many, each has few questions and takes few steps a round.
        common: options of all its runs, as `Cell.options`.
        shown: options, each a line of the table for each method; tuning uses the first.
        tuned: options of which tuning chooses one together with a rate.
        seeds: of what is shown.
        tuning_seeds: of what chooses.
    """

    methods: tuple[str, ...]
    settings: tuple[Setting, ...]
    rates: Mapping[int, Sequence[float]]
    task: str = DEMO
    common: str = ""
    shown: tuple[str, ...] = ("",)
    tuned: tuple[str, ...] = ("",)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seeds: tuple[int, ...] = (10, 11)

    @property
    def comparisons(self) -> int:
        """Lines of a table that are compared with fedavg's."""
        return len(set(self.methods) - {FEDAVG}) * len(self.shown)

    def tuning(self, method: str, clients: int) -> dict[Choice, list[Cell]]:
        """What is tried at the lowest α, and the runs that score it on validation questions."""
        alpha = min(setting.alpha for setting in self.settings if setting.clients == clients)
        found = {}
        for rate, options in itertools.product(self.rates[clients], self.tuned):
            line = _joined(self.common, self.shown[0], options)
            found[Choice(rate, options)] = [
                Cell(self.task, method, line, clients, alpha, rate, seed, "val")
                for seed in self.tuning_seeds
            ]
        return found

    def choice(self, method: str, clients: int, rows: Sequence[Row]) -> Choice | None:
        """What did best in the last rounds; None until all has been tried."""
        return least(self.tuning(method, clients), {row.cell: -row.last_rounds for row in rows})

    def test(self, method: str, setting: Setting, shown: str, rows: Sequence[Row]) -> list[Cell]:
        """The runs of a table's line, on test questions; none until tuning is complete."""
        if (choice := self.choice(method, setting.clients, rows)) is None:
            return []
        options = _joined(self.common, shown, choice.options)
        return [
            Cell(self.task, method, options, *setting, choice.rate, seed, "test")
            for seed in self.seeds
        ]

    def tuning_cells(self, methods: Sequence[str]) -> list[Cell]:
        """All runs that choose."""
        tried = (self.tuning(*one) for one in itertools.product(methods, self.rates))
        return [cell for each in tried for cells in each.values() for cell in cells]

    def test_cells(self, methods: Sequence[str], rows: Sequence[Row]) -> list[Cell]:
        """All runs that are shown, by seed: early on every method has some."""
        lines = itertools.product(methods, self.settings, self.shown)
        cells = [cell for line in lines for cell in self.test(*line, rows)]
        return sorted(cells, key=lambda cell: cell.seed)


def _joined(*options: str) -> str:
    return " ".join(filter(None, options))


AT_20, AT_50 = (Setting(20, 0.1),), (Setting(50, 0.1),)
CORE, REAL, PRIVACY = "core", "real", "privacy"
BEST = 3
"""Methods of the core that are run on the real LLM, beside fedavg."""
PARTS = {
    CORE: Part(
        (FEDAVG, "fedavg-exact", "fednano", "fednano-ef", "rolora", "ffa-lora", "accumulate"),
        tuple(itertools.starmap(Setting, itertools.product((5, 20, 50), (0.1, 1.0)))),
        {5: LOWER, 20: HIGHER, 50: HIGHER},
    ),
    "others": Part(
        (
            *("fedprox", "fedsvd", "fedrot-lora", "fedex", "fisher-product"),
            *("feddpa-f-equal", "locft", "centralized"),
        ),
        AT_20,
        {20: HIGHER},
    ),
    "fisher": Part(
        (
            *(FEDAVG, "fisher-pass", "fisher-samples", "fisher-samples-floor"),
            *("fisher-samples-equal", "fisher-last-epoch"),
        ),
        AT_20,
        {20: HIGHER[:3]},
        common="num-server-rounds=10",
        seeds=(0, 1, 2, 3),
    ),
    "participation": Part(
        (FEDAVG, "fedavg-exact", "fednano", "rolora", "accumulate"),
        AT_50,
        {50: HIGHER},
        common="fraction-train=0.3",
        seeds=(0, 1, 2, 3),
    ),
    PRIVACY: Part(
        (FEDAVG, "ffa-lora", "fedsvd"),
        AT_50,
        {50: (0.002, 0.01)},
        common="fraction-train=0.3 privacy.dp=server-fixed strategy.weight-by=equal",
        shown=tuple(f"privacy.noise-multiplier={z}" for z in (0.5, 0.25, 1.0)),
        tuned=tuple(f"privacy.clip-norm={norm}" for norm in (0.3, 1.0)),
        seeds=(0, 1, 2, 3),
    ),
    REAL: Part(
        (FEDAVG,),
        (Setting(5, 0.5), Setting(20, 0.5)),
        {5: LOWER, 20: HIGHER},
        task=EASY,
        seeds=(0, 1, 2),
        tuning_seeds=(10,),
    ),
}
"""All but the core and `others` have at most 60 runs."""


def part_of(name: str, rows: Sequence[Row]) -> Part:
    """A part; that of the real LLM with the methods that did best in the core."""
    part = PARTS[name]
    return part if name != REAL else dataclasses.replace(part, methods=(FEDAVG, *best(rows)))


def best(rows: Sequence[Row]) -> list[str]:
    """The methods with the best mean accuracy over all settings and seeds of the core.

    None until each run of the core is there.
    """
    core, found, means = PARTS[CORE], {row.cell: row.accuracy for row in rows}, {}
    for method in core.methods:
        cells = core.test_cells((method,), rows)
        if not cells or not set(cells) <= set(found):
            return []
        means[method] = statistics.fmean(found[cell] for cell in cells)
    return sorted(set(means) - {FEDAVG}, key=means.__getitem__, reverse=True)[:BEST]
