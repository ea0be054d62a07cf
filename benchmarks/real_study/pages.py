"""Rows of the study as results/real/premise.json and as the tables of docs/real-model.md."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_study.plan import (
    INSIDE,
    SEEDS,
    TASKS,
    before_llm,
    chosen_rates,
    methods_of,
    tuning_cells,
)
from benchmarks.real_study.rows import Row, unpacked
from benchmarks.real_study.share import Scores, share_of_gain
from benchmarks.real_study.whole import CENTRALIZED, FROZEN, LORA
from benchmarks.report import table
from benchmarks.study import marks
from benchmarks.study.plan import ROOT
from fednano_flwr.analysis.experiments.tables import difference, points
from fednano_flwr.analysis.statistics import Spread, paired, spread
from fednano_flwr.base.files import replace_file

PAGE = ROOT / "docs" / "real-model.md"
INSIDE_PAGE = ROOT / "docs" / "host-lora.md"
RUNS = ROOT / "results" / "real" / "runs.csv"
"""The rows that the page shows."""
NOT_RUN = "not run"
FEDAVG = "fedavg"
INSIDE_TABLE = (FROZEN, "fedavg-exact", *INSIDE, LORA)
SHARES = {"share_of_lora_gain": "accuracy", "share_of_lora_loss_reduction": "answer loss"}
"""Fields of premise.json, and what each is a share of."""


def premise(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For each field of `SHARES` and each task the share, its interval and its seeds."""
    found: dict[str, dict[str, Any]] = {field: {} for field in SHARES}
    for task in TASKS:
        known = {(row.method, row.seed): row for row in tested(rows, task)}
        three = (FROZEN, CENTRALIZED, LORA)
        seeds = [seed for seed in SEEDS if all((name, seed) in known for name in three)]
        values = [[unpacked(known[name, seed]) for name in three] for seed in seeds]
        right = [Scores(*(one[0] for one in models)) for models in values]
        likely = [Scores(*(-one[1] for one in models)) for models in values]
        for field, scores in zip(SHARES, (right, likely), strict=True):
            none = {"mean": None, "low": None, "high": None, "reason": NOT_RUN}
            share = share_of_gain(scores) if scores else none
            found[field][task] = {**share, "seeds": seeds}
    return found


def write_premise(file: Path, rows: Sequence[Row]) -> None:
    """Write what `premise` says."""
    replace_file(file, (json.dumps(premise(rows), indent=2) + "\n").encode())


def write_page(rows: Sequence[Row]) -> None:
    """Make the pages' tables anew."""
    for page in (PAGE, INSIDE_PAGE):
        replace_file(page, with_tables(page.read_text("utf-8"), rows).encode())


def with_tables(page: str, rows: Sequence[Row]) -> str:
    """The page with each table between `<!-- real-study: KIND TASK -->` and `<!-- end -->`."""
    kinds: Mapping[str, Callable[[str], str]] = {
        "premise": lambda _: premise_table(rows),
        "rates": lambda task: rates_table(rows, task),
        "methods": lambda task: methods_table(rows, task),
        "against": lambda _: against_table(rows),
        "checks": lambda _: checks(rows),
        "inside": lambda task: methods_table(rows, task, INSIDE_TABLE),
        "inside_rates": lambda task: rates_table(rows, task, tuple(INSIDE)),
        "inside_against": lambda _: inside_table(rows),
    }
    return marks.with_tables(page, "real-study", kinds)


def tested(rows: Sequence[Row], task: str, method: str = "") -> list[Row]:
    """Rows that are shown: of test questions, at the chosen rate, in the order of seeds."""
    rates = chosen_rates(task, rows)
    return sorted(
        (
            row
            for row in rows
            if (row.task, row.split) == (task, "test")
            and row.seed in SEEDS
            and row.rate == rates.get(row.method)
            and method in ("", row.method)
        ),
        key=lambda row: row.seed,
    )


def premise_table(rows: Sequence[Row]) -> str:
    """What share of LoRA's gain the adapters get, task by task; all three in the unsplit model."""
    found = premise(rows)
    lines = []
    for task in TASKS:
        shares = [found[field][task] for field in SHARES]
        seeds = shares[0]["seeds"]  # those that all three models have
        accuracy = [
            spread(
                [
                    100 * float(unpacked(row)[0].mean())
                    for row in tested(rows, task, name)
                    if row.seed in seeds
                ]
            )
            for name in (FROZEN, CENTRALIZED, LORA)
        ]
        cells = [*map(_spread, accuracy), *map(_share, shares)]
        lines.append([f"`{task}`", str(len(seeds)), *cells])
    heads = ["task", "seeds", "frozen, %", "NanoAdapters, %", "LoRA, %"]
    return table([*heads, *(f"share of LoRA's gain in {what}" for what in SHARES.values())], lines)


def rates_table(rows: Sequence[Row], task: str, names: Sequence[str] = ()) -> str:
    """Validation loss and accuracy at each rate; the chosen ones in bold.

    Args:
        names: of methods; () for those before the language model.
    """
    found, chosen = {row.cell: row for row in rows}, chosen_rates(task, rows)
    lines = []
    methods = methods_of(task)
    for name in names or before_llm(task):
        cells = []
        for cell in (cell for cell in tuning_cells(task) if cell.method == name):
            row = found.get(cell)
            text = NOT_RUN if row is None else f"{row.loss:.3f} ({row.accuracy:.1f} %)"
            bold = "**" if cell.rate == chosen.get(name) else ""
            cells.append(f"{cell.rate:g}: {bold}{text}{bold}")
        if methods[name].rates:
            lines.append([f"`{name}`", *cells])
    return table(["", "lowest", "second", "third", "highest"], lines)


def methods_table(rows: Sequence[Row], task: str, names: Sequence[str] = ()) -> str:
    """Methods on test questions.

    Args:
        names: of which; () for those before the language model.
    """
    frozen = {row.seed: row.accuracy for row in tested(rows, task, FROZEN)}
    lines = []
    for name in names or before_llm(task):
        mine = tested(rows, task, name)
        if not mine:
            lines.append([f"`{name}`", NOT_RUN, *[""] * 8])
            continue
        gain = spread(list(paired({row.seed: row.accuracy for row in mine}, frozen).values()))
        lines.append(
            [
                f"`{name}`",
                "–" if mine[0].rate is None else f"{mine[0].rate:g}",
                str(len(mine)),
                _mean(mine, "accuracy", 1),
                "–" if name == FROZEN else _gain(gain),
                _mean(mine, "worst_client", 1),
                _mean(mine, "loss", 3),
                *(_mean(mine, key, 1) for key in ("upload_kb_a_round", "step_mb_a_round")),
                f"{_mean(mine, 'seconds', 0)} s, {_mean(mine, 'peak_mb', 0)} MB",
            ]
        )
    heads = ["", "rate", "seeds", "accuracy, %", "against frozen (95 %)", "worst client, %"]
    heads += ["answer loss", "upload kB a round", "step MB a round", "time and memory of a run"]
    return table(heads, lines)


def against_table(rows: Sequence[Row]) -> str:
    """What other merging, or none, changes against `fedavg`, seed by seed."""
    lines = []
    for task in TASKS:
        base = {row.seed: row for row in tested(rows, task, FEDAVG)}
        for name, method in before_llm(task).items():
            if method.strategy not in (CENTRALIZED, FEDAVG):
                lines.append([f"`{task}`", f"`{name}`", *_differences(rows, task, name, base)])
    return table(["task", "", "accuracy, points", "answer loss"], lines)


def inside_table(rows: Sequence[Row]) -> str:
    """Federations with LoRA inside against centralized LoRA, and against NanoAdapters alone."""
    bases, lines = (LORA, "fedavg-exact"), []
    for task in TASKS:
        found = [{row.seed: row for row in tested(rows, task, base)} for base in bases]
        for name in INSIDE:
            cells = [cell for base in found for cell in _differences(rows, task, name, base)]
            lines.append([f"`{task}`", f"`{name}`", *cells])
    heads = [f"{what} against `{base}`" for base in bases for what in ("accuracy", "answer loss")]
    return table(["task", "", *heads], lines)


def _differences(
    rows: Sequence[Row], task: str, name: str, base: Mapping[int, Row]
) -> tuple[str, str]:
    """In accuracy and in answer loss, seed by seed."""
    mine = {row.seed: row for row in tested(rows, task, name)}
    return _apart(mine, base, "accuracy", 1), _apart(mine, base, "loss", 3)


def checks(rows: Sequence[Row]) -> str:
    """How far the split and the unsplit model are apart, and which code made the rows."""
    shown = [row for task in TASKS for row in tested(rows, task)]
    unsplit = {(row.task, row.seed): row.accuracy for row in shown if row.method == FROZEN}
    before = [
        abs(row.frozen - unsplit[row.task, row.seed])
        for row in shown
        if row.frozen is not None and (row.task, row.seed) in unsplit
    ]
    after = [
        abs(row.accuracy - 100 * unpacked(row)[0].mean())
        for row in shown
        if row.method == CENTRALIZED
    ]
    lines = [f"- {len(rows)} runs of the commits {', '.join(sorted({r.commit for r in rows}))}."]
    for what, apart in (("frozen", before), ("with centrally trained NanoAdapters", after)):
        if apart:
            lines.append(
                f"- Accuracy of the split and of the unsplit model, {what}: at most "
                f"{max(apart):.2f} points apart in {len(apart)} runs."
            )
    return "\n".join(lines)


def _mean(rows: Sequence[Row], key: str, digits: int) -> str:
    values = [value for row in rows if (value := getattr(row, key)) is not None]
    if not values:
        return "–"
    found = spread(values)
    deviation = "" if found.stdev is None or not digits else f" ± {found.stdev:.{digits}f}"
    return f"{found.mean:.{digits}f}{deviation}"


def _spread(found: Spread) -> str:
    return NOT_RUN if found.mean is None else str(found)


def _gain(found: Spread) -> str:
    if found.mean is None:
        return "–"
    return points(found.mean) if found.low is None else difference(dataclasses.asdict(found))


def _apart(mine: Mapping[int, Row], base: Mapping[int, Row], key: str, digits: int) -> str:
    """The mean difference of a number over the seeds that both have, with its interval."""
    values = ({seed: getattr(row, key) for seed, row in one.items()} for one in (mine, base))
    found = spread(list(paired(*values).values()))
    if found.mean is None or found.low is None or found.high is None:
        return NOT_RUN
    mean, low, high = (f"{x:+.{digits}f}" for x in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def _share(found: Mapping[str, Any]) -> str:
    """`0.71 (0.52 to 0.90)`, or why there is none."""
    if found["mean"] is None:
        return str(found["reason"])
    if found["low"] is None:
        return f"{found['mean']:.2f} ({found['reason']})"
    return f"{found['mean']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
