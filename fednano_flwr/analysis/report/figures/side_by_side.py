"""Groups of runs in one figure: how they get there, and where each seed ends."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fednano_flwr.analysis.report.canvas import (
    INK,
    MARKERS,
    PALETTE,
    Missing,
    Picture,
    by_round,
    key_below,
    panels,
    styled,
)
from fednano_flwr.analysis.report.compare import Group

DASHES = ("-", "--", ":", "-.")


@styled
def curves(groups: Sequence[Group]) -> Picture | Missing:
    """Mean accuracy by round, with a band of one standard deviation over seeds."""
    name, title = "curves", "Mean accuracy by round"
    figure, (axes,) = panels(height=3.4 + 0.2 * len(groups))
    said = []
    for place, one in enumerate(groups):
        rounds = [k for k in range(one.last + 1) if one.values(k)]
        each = [one.values(k) for k in rounds]
        means = [statistics.fmean(values) for values in each]
        if not rounds:
            continue
        shade = PALETTE[place % len(PALETTE)]
        axes.plot(
            rounds,
            means,
            color=shade,
            linestyle=DASHES[place // len(PALETTE) % len(DASHES)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=4.5,
            linewidth=1.8,
            label=f"{one.label} (n = {len(one.runs)})",
        )
        if len(one.runs) > 1:
            wide = [statistics.stdev(values) for values in each]
            low = [mean - deviation for mean, deviation in zip(means, wide, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, wide, strict=True)]
            axes.fill_between(rounds, low, high, color=shade, alpha=0.2, linewidth=0)
        said.append(
            f"{one.label}: {means[0]:.1f} % in round {rounds[0]}, {means[-1]:.1f} % in {rounds[-1]}"
        )
    if not said:
        return Missing(name, title, "no round was scored by all clients of a group's runs")
    axes.set_title(title)
    axes.set_ylabel("mean accuracy of clients, %")
    by_round(axes)
    key_below(figure, [axes], 1)
    note = "Lines are means over seeds; a band is one standard deviation over seeds, where n ≥ 2."
    return Picture(name, title, "; ".join(said) + ".", note, figure)


@styled
def ends(groups: Sequence[Group]) -> Picture | Missing:
    """A dot a seed after the last round, a line at the mean."""
    name, title = "ends", "Accuracy after the last round, seed by seed"
    if not any(one.values(one.last) for one in groups):
        return Missing(name, title, "no client has a test question")
    figure, (axes,) = panels(height=1.3 + 0.55 * len(groups))
    said = []
    for place, one in enumerate(groups):
        values = one.values(one.last)
        shade = PALETTE[place % len(PALETTE)]
        axes.plot(
            values, [place] * len(values), MARKERS[place % len(MARKERS)], color=shade, markersize=7
        )
        if values:
            mean = sum(values) / len(values)
            axes.plot([mean] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=2)
            each = ", ".join(f"{value:.1f}" for value in values)
            said.append(f"{one.label}: {each} %")
    axes.set_yticks(range(len(groups)), [_wrapped(one.label) for one in groups], fontsize=9)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.margins(x=0.1)
    axes.set_xlabel("mean accuracy of clients, %")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    note = "A mark is a seed, an upright line the mean over seeds."
    return Picture(name, title, "; ".join(said) + ".", note, figure)


def _wrapped(label: str) -> str:
    return label.replace(", ", "\n")
