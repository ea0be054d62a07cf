"""Which runs the study has: tasks × methods × seeds, each method at a rate chosen before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.real_study.rows import Cell, Row
from benchmarks.real_study.scienceqa import write_text_only
from benchmarks.real_study.whole import CENTRALIZED, FROZEN, LORA
from benchmarks.study.plan import (
    ROOT,
    data_folder,
    digest_of_parts,
    folder_digest,
    least,
    model_digest,
    placeless,
    planned_run,
)
from fednano_demo.real.german import write_german
from fednano_demo.real.mixture import write_mixture
from fednano_flwr.analysis.config_digest import digest_of
from fednano_flwr.analysis.experiments.plan import PlannedRun

SEEDS, TUNING_SEED = (0, 1, 2), 10
CLIENTS = 3


class Method(NamedTuple):
    """How the model is tuned.

    Attributes:
        strategy: file of conf/ without its ending.
        rates: of learning, from which validation questions choose one.
        changes: `KEY=VALUE` beside the strategy's.
    """

    strategy: str
    rates: Sequence[float]
    changes: Sequence[str] = ()


RATES = (0.0003, 0.001, 0.003, 0.01)
LORA_RATES = (0.0001, 0.0003, 0.001, 0.003)
"""As many, and lower, since LoRA is trained in all layers."""
METHODS = {
    FROZEN: Method(CENTRALIZED, ()),
    CENTRALIZED: Method(CENTRALIZED, RATES),
    LORA: Method(CENTRALIZED, LORA_RATES),
    "fedavg-exact": Method("fedavg-exact", RATES),
    "fedavg": Method("fedavg", RATES),
    "fednano-ef": Method("fednano-ef", RATES),
    "locft": Method("locft", RATES),
}
SCIENCEQA, GERMAN, MIXTURE = TASKS = ("scienceqa", "german", "mixture")
"""Each is a file in conf/real; the last one has pictures."""
MORE = {
    GERMAN: {
        "fednano": Method("fednano", RATES),
        "rank-4": Method(CENTRALIZED, RATES, ("adapter.rank=4",)),
        "rank-64": Method(CENTRALIZED, RATES, ("adapter.rank=64",)),
    },
    MIXTURE: {
        "image-only": Method(CENTRALIZED, RATES, ("adapter.sites=image",)),
        "text-only": Method(CENTRALIZED, RATES, ("adapter.sites=text",)),
    },
}
"""Run on one task each."""
INSIDE = {
    "llm": Method("fedavg-exact", LORA_RATES),
    "all-sites": Method("fedavg-exact", LORA_RATES),
}
"""With LoRA inside the language model, trained at the host: alone, or beside the NanoAdapters. The
rate is the LoRA's; the NanoAdapters have the one of `RATES` in its place."""
EDGE_SITES = {SCIENCEQA: "text", GERMAN: "text", MIXTURE: "all"}
"""Of the tasks' files."""
STAGES = (
    (FROZEN, CENTRALIZED, LORA),
    tuple(METHODS)[3:],
    tuple(itertools.chain.from_iterable(MORE.values())),
    tuple(INSIDE),
)
"""What a task's share needs comes first, then the federations, then `MORE` and `INSIDE`."""


def methods_of(task: str) -> dict[str, Method]:
    """All methods of a task, in the order of its tables."""
    return METHODS | MORE.get(task, {}) | INSIDE


def before_llm(task: str) -> dict[str, Method]:
    """Those whose tables are in docs/real-model.md."""
    return {name: one for name, one in methods_of(task).items() if name not in INSIDE}


def rates_of(cell: Cell) -> list[str]:
    """Learning rates, and sites where a method has others, as changes of the config."""
    if cell.rate is None:
        return []
    if cell.method not in INSIDE:
        return [f"learning-rate={cell.rate}"]
    sites = "llm" if cell.method == "llm" else f"{EDGE_SITES[cell.task]},llm"
    return [
        f"adapter.sites={sites}",
        f"adapter.llm-learning-rate={cell.rate}",
        f"learning-rate={RATES[LORA_RATES.index(cell.rate)]}",
    ]


def tuning_cells(task: str) -> list[Cell]:
    """Runs that choose each method's rate, scored on validation questions of another seed."""
    return [
        Cell(task, name, rate, TUNING_SEED, "val")
        for name, method in methods_of(task).items()
        for rate in method.rates
    ]


def chosen_rates(task: str, rows: Sequence[Row]) -> dict[str, float]:
    """Of each method whose rates have all been tried, the one with the lowest validation loss."""
    found = {row.cell: row.loss for row in rows}
    chosen = {}
    for name, method in methods_of(task).items():
        tried = {rate: [Cell(task, name, rate, TUNING_SEED, "val")] for rate in method.rates}
        if (rate := least(tried, found)) is not None:
            chosen[name] = rate
    return chosen


def test_cells(task: str, rates: dict[str, float]) -> list[Cell]:
    """Runs that are shown, of the methods that have a rate or need none."""
    return [
        Cell(task, name, rates.get(name), seed, "test")
        for seed in SEEDS
        for name, method in methods_of(task).items()
        if name in rates or not method.rates
    ]


@dataclass(frozen=True)
class Places:
    """Where things are on this machine.

    Attributes:
        model: folder of the real model.
        scienceqa: folder of a copy of ScienceQA.
        out: folder for data and runs.
    """

    model: Path
    scienceqa: Path
    out: Path

    def planned(self, cell: Cell) -> PlannedRun:
        """A cell as a run of a comparison.

        Raises:
            ConfigError: its config cannot be used.
        """
        method = methods_of(cell.task)[cell.method]
        changes = [
            str(ROOT / "conf" / "real" / f"{cell.task}.toml"),
            f"model.name={self.model}",
            f"dataset.path={self.data(cell.task, cell.seed)}",
            f"dataset.test-split={cell.split}",
            *rates_of(cell),
            *method.changes,
        ]
        file = ROOT / "conf" / f"{method.strategy}.toml"
        return planned_run(cell.method, file, changes, cell.seed, CLIENTS, self.out)

    def digest(self, cell: Cell) -> str:
        """Of what decides a cell's result: config, questions, and the parts of the model in use."""
        return digest_of_parts(
            digest_of(placeless(self.planned(cell).config), CLIENTS),
            folder_digest(self.data(cell.task, cell.seed)),
            model_digest(self.model, pictures=cell.task == MIXTURE),
        )

    def data(self, task: str, seed: int) -> Path:
        """Folder of a task's questions; they are written where they are not there."""
        write: Callable[[Path], None] = {
            SCIENCEQA: partial(write_text_only, source=self.scienceqa, seed=seed),
            GERMAN: partial(write_german, seed=seed),
            MIXTURE: partial(write_mixture, seed=seed),
        }[task]
        return data_folder(self.out / "data" / f"{task}-seed{seed}", write)
