"""A comparison as pictures: where each experiment ends, and how it gets there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fednano_flwr.analysis.experiments.plan import Plan, Run, Setting
from fednano_flwr.analysis.experiments.results import Results, accuracies, pair_key
from fednano_flwr.analysis.experiments.store import Finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDS, WAYS = "comparison.png", "rounds.png"
GREY = "#888888"
MOST_COLUMNS = 3


def draw(plan: Plan, results: Results, finished: Mapping[Run, Finished], folder: Path) -> None:
    """Write both pictures; needs no display."""
    _ends(plan, results, finished).savefig(folder / ENDS, dpi=150)
    _ways(plan, results).savefig(folder / WAYS, dpi=150)


def _ends(plan: Plan, results: Results, finished: Mapping[Run, Finished]) -> Figure:
    """A row a setting: accuracies on the left, differences from the baseline on the right."""
    names, settings = plan.experiments, plan.settings
    figure = _figure(10, (1.0 + 0.34 * len(names)) * len(settings) + 0.3)
    grid = figure.subplots(len(settings), 2, squeeze=False, width_ratios=(1.2, 1))
    for setting, (left, right) in zip(settings, grid, strict=True):
        theirs = accuracies(plan, finished, plan.baseline, setting)
        rows = [row for row in results["rows"] if row["setting"] == setting.label]
        for place, row in enumerate(rows):
            ours = accuracies(plan, finished, row["experiment"], setting)
            _mean(left, row["accuracy"], place)
            _dots(left, list(ours.values()), place)
            if (before := row["round_0"]["mean"]) is not None:
                ends = [place - 0.5, place + 0.5]
                left.plot([before] * 2, ends, "--", color=GREY, linewidth=1, zorder=0)
            pair = results["paired"].get(pair_key(row["experiment"], plan.baseline, setting))
            if pair:
                _mean(right, pair, place)
                _dots(right, [ours[seed] - theirs[seed] for seed in pair["seeds"]], place)
        right.axvline(0, color=GREY, linewidth=1, zorder=0)
        _name_rows(left, names)
        _name_rows(right, [""] * len(names))
        left.set_title(_title(plan, setting), loc="left", fontsize=10)
        left.set_xlabel("accuracy after the last round, % (dashed: round 0)", fontsize=9)
        right.set_xlabel(f"points against {plan.baseline}, same seeds", fontsize=9)
    figure.suptitle(
        "Mean over seeds with its 95 % interval; dots: single seeds", fontsize=9, x=0.01, ha="left"
    )
    return figure


def _ways(plan: Plan, results: Results) -> Figure:
    """A panel a setting: accuracy by round, mean over seeds, of rounds that all clients scored."""
    columns = min(MOST_COLUMNS, len(plan.settings))
    lines = math.ceil(len(plan.settings) / columns)
    figure = _figure(4.6 * columns, 3.8 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[len(plan.settings) :]:
        axes.set_visible(False)
    for setting, axes in zip(plan.settings, panels, strict=False):
        rows = [row for row in results["rows"] if row["setting"] == setting.label]
        for place, row in enumerate(rows):
            known = {k: a for k, a in enumerate(row["accuracy_by_round"]) if a is not None}
            axes.plot(
                list(known),
                list(known.values()),
                color=_colour(place),
                linestyle=("-", "--", ":")[place // 10 % 3],
                marker="o",
                markersize=3,
                linewidth=1.4,
                label=f"{row['experiment']} (n = {len(row['seeds'])})",
            )
        axes.set_title(_title(plan, setting), loc="left", fontsize=10)
        axes.set_xlabel("round (0: frozen model)", fontsize=9)
        axes.set_ylabel("mean client accuracy, %, mean over seeds", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.legend(fontsize=8, frameon=False)
    return figure


def _mean(axes: Axes, value: Mapping[str, float | None], place: int) -> None:
    """A diamond at the mean and a line over its interval, as far as they are known."""
    if value["mean"] is None:
        return
    axes.plot(value["mean"], place, "D", color=_colour(place), markersize=6, zorder=3)
    if value["low"] is not None and value["high"] is not None:
        ends = [value["low"], value["high"]]
        axes.plot(ends, [place] * 2, color=_colour(place), linewidth=2, zorder=2)


def _dots(axes: Axes, values: list[float], place: int) -> None:
    below = [place + 0.22] * len(values)
    axes.plot(values, below, "o", color=_colour(place), markersize=3, alpha=0.6)


def _colour(place: int) -> str:
    return f"C{place % 10}"


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _title(plan: Plan, setting: Setting) -> str:
    clients = f"{plan.runs[0].clients} clients"
    return f"{setting.label.replace(',', ', ')}, {clients}" if setting.label else clients


def _figure(width: float, height: float) -> Figure:
    """Empty, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
