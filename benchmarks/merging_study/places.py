"""A cell as a run on this machine: its questions are drawn by its seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.merging_study.plan import DEMO, EASY
from benchmarks.merging_study.rows import Cell, Row
from benchmarks.study.plan import (
    ROOT,
    data_folder,
    digest_of_parts,
    folder_digest,
    model_digest,
    placeless,
    planned_run,
)
from fednano_demo.generate import TEST, TRAIN, draw_splits
from fednano_demo.layouts import write_scienceqa
from fednano_demo.questions import DOWNSTREAM
from fednano_demo.skills import IMAGE_SKILLS, TEXT_SKILLS
from fednano_flwr.analysis.config_digest import deciding
from fednano_flwr.analysis.experiments.plan import PlannedRun
from fednano_flwr.base.resources import resolve
from fednano_flwr.config import ConfigError, Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.shard import read_shards
from fednano_flwr.strategies.registry import reads

ROUNDS = 6
SIZES = {5: (TRAIN, 1000, TEST), 20: (TRAIN, 1000, TEST), 50: (5000, 1000, 2500)}
"""By number of clients: the demo's training, validation and test questions, more to validate on:
of its 300, some of 20 clients would have one."""
EASY_VAL = 100
"""Validation questions of easy-VQA."""
STEP, TRIES = 100, 5
"""From a seed that cannot be dealt to the one that takes its place, and how many are tried."""


def conf_of(method: str) -> Path | None:
    """An experiment's file; None where there is none."""
    files = (ROOT / "conf" / sub / f"{method}.toml" for sub in ("", "merging"))
    return next(filter(Path.is_file, files), None)


@dataclass(frozen=True)
class Places:
    """Where things are on this machine.

    Attributes:
        model: folder of the real LLM.
        out: folder for questions and runs.
    """

    model: Path
    out: Path

    def planned(self, cell: Cell, seed: int) -> PlannedRun:
        """A cell as a run of a comparison, dealt by a seed.

        Raises:
            ConfigError: its method has no file, or its config cannot be used.
        """
        if (file := conf_of(cell.method)) is None:
            raise ConfigError(f"there is no conf/{cell.method}.toml")
        task = {
            DEMO: [f"num-server-rounds={ROUNDS}"],
            EASY: [str(ROOT / "conf" / "real.toml"), f"model.name={self.model}"],
        }[cell.task]
        changes = [
            *task,
            f"dataset.path={self.data(cell, seed)}",
            f"dataset.test-split={cell.split}",
            f"dataset.alpha={cell.alpha}",
            f"learning-rate={cell.rate}",
            *cell.options.split(),
        ]
        return planned_run(cell.method, file, changes, seed, cell.clients, self.out)

    def dealt(self, cell: Cell) -> PlannedRun:
        """The cell as a run with its seed, or with the first of those `STEP` apart by which every
        client is dealt training questions and questions to be scored on.

        Raises:
            ConfigError: it cannot be run with any of `TRIES` seeds.
        """
        for seed in range(cell.seed, cell.seed + TRIES * STEP, STEP):
            run = self.planned(cell, seed)
            if not (reason := why_not_dealt(run.config.dataset, seed, cell.clients)):
                return run
        raise ConfigError(f"none of {TRIES} seeds can be dealt: {reason}")

    def digest(self, run: PlannedRun) -> str:
        """Of what decides a run's result: config, questions and model.

        Keys of strategies that the run's own does not read are left out, so that a new strategy
        with a key of its own leaves the rows of the others valid.
        """
        config = placeless(run.config)
        used = {"strategy.name", *(f"strategy.{key}" for key in reads(config.strategy.name))}
        flat = {
            key: value
            for key, value in deciding(config).items()
            if not key.startswith("strategy.") or key.replace("-", "_") in used
        }
        model = _model(resolve("model.name", run.config.model.name))
        data = folder_digest(Path(run.config.dataset.path))
        return digest_of_parts(str(sorted(flat.items())), str(run.clients), data, model)

    def data(self, cell: Cell, seed: int) -> Path:
        """Folder of a cell's questions; they are written where they are not there."""
        sizes = SIZES[cell.clients]
        write: Callable[..., None]
        write = partial(write_questions, sizes=sizes) if cell.task == DEMO else write_easy
        name = f"{cell.task}-{'-'.join(map(str, sizes))}" if cell.task == DEMO else cell.task
        return data_folder(self.out / "data" / f"{name}-seed{seed}", partial(write, seed=seed))


_model = cache(model_digest)


@cache
def is_valid(places: Places, row: Row) -> bool:
    """Whether a row is of today's config, questions and model, which stay so in this process.

    One of the real LLM is taken to be where that is not here, as none is run then.
    """
    if row.task == EASY and not places.model.exists():
        return True
    try:
        return row.digest == places.digest(places.planned(row.cell, row.dealt_seed))
    except ConfigError:  # a key or a value is gone
        return False


@cache  # methods share it
def why_not_dealt(dataset: Dataset, seed: int, clients: int) -> str:
    """Why a seed cannot be dealt; "" if it can."""
    try:
        shards = read_shards(dataset, seed, clients)
    except DataError as error:
        return str(error)
    return "" if all(len(shard.test) for shard in shards) else "a client would not be scored"


def write_questions(folder: Path, sizes: tuple[int, int, int], seed: int) -> None:
    """Write the demo's questions, with and without pictures, in ScienceQA's layout.

    Args:
        sizes: training, validation and test questions; none occurs twice.
    """
    splits = dict(zip(("train", "val", "test"), sizes, strict=True))
    rng = np.random.default_rng(seed)
    write_scienceqa(folder, draw_splits((*IMAGE_SKILLS, *TEXT_SKILLS), splits, rng, DOWNSTREAM))


def write_easy(folder: Path, seed: int) -> None:
    """Write questions of easy-VQA with other names for the shapes, as a table.

    Validation questions may be of pictures that training questions are of; test questions are not.
    """
    from fednano_demo.real import easy  # only the real LLM's part needs its package

    easy.write_dataset(folder, easy.TRAIN + EASY_VAL, easy.TEST, seed)
    file = folder / "train.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, rows in (("train", lines[EASY_VAL:]), ("val", lines[:EASY_VAL])):
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
