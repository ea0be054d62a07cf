"""Groups of runs in one figure: how they get there, where each seed ends, how far they are apart.

`fednano report RUN RUN` draws `curves` and `ends`, `fednano compare` `curves_by_setting` and
`intervals`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fednano_flwr.analysis import canvas
from fednano_flwr.analysis.groups import Group
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.analysis.statistics import paired, spread
from fednano_flwr.runs.summary import titled

DASHES = ("-", "--", ":", "-.")
MOST_COLUMNS = 3
Settings = Mapping[str, Sequence[Group]]
"""A panel's title to its groups, the baseline's first or not."""


@canvas.styled
def curves(groups: Sequence[Group]) -> Picture:
    """Mean score by round, with a band of one standard deviation over seeds."""
    label = groups[0].metric
    name, title = "curves", f"Mean {label} by round"
    figure, (axes,) = canvas.panels(height=3.4 + 0.2 * len(groups))
    drawn = {one.label: _curve(axes, place, one, True) for place, one in enumerate(groups)}
    said = [
        f"{one}: {means[min(means)]:.1f} % in round {min(means)}, {means[max(means)]:.1f} % in "
        f"{max(means)}"
        for one, means in drawn.items()
        if means
    ]
    if not said:
        reason = "no round was scored by all clients of a group's runs"
        return Picture(name, title, reason=reason)
    canvas.finish(figure, axes, title, f"mean {label} of clients, %", 1)
    note = "Lines are means over seeds; a band is one standard deviation over seeds, where n ≥ 2."
    return Picture(name, title, figure, "; ".join(said) + ".", note)


@canvas.styled
def ends(groups: Sequence[Group]) -> Picture:
    """A mark a seed after the last round, a line at the mean."""
    label = groups[0].metric
    name, title = "ends", f"{titled(label)} after the last round, seed by seed"
    values = {place: one.values(one.last) for place, one in enumerate(groups)}
    if not any(values.values()):
        return Picture(name, title, reason="no client has a test question")
    figure, (axes,) = canvas.panels(height=1.3 + 0.55 * len(groups))
    said = []
    for place, each in values.items():
        rows, color = [place] * len(each), canvas.shade(place)
        axes.plot(each, rows, canvas.mark(place), color=color, markersize=7)
        if each:
            mean = statistics.fmean(each)
            axes.plot([mean] * 2, [place - 0.3, place + 0.3], color=canvas.INK, linewidth=2)
            said.append(f"{groups[place].label}: {', '.join(f'{v:.1f}' for v in each)} %")
    canvas.name_rows(axes, [one.label.replace(", ", "\n") for one in groups])
    axes.margins(x=0.1)
    axes.set_xlabel(f"mean {label} of clients, %")
    canvas.titled(figure, title)
    note = "A mark is a seed, an upright line the mean over seeds."
    return Picture(name, title, figure, "; ".join(said) + ".", note)


@canvas.styled
def curves_by_setting(settings: Settings) -> Figure:
    """A panel a setting: mean score by round."""
    columns = min(MOST_COLUMNS, len(settings))
    rows = math.ceil(len(settings) / columns)
    figure, panels = canvas.panels(rows, 3.8, columns, 4.6 * columns)
    for axes in panels[len(settings) :]:
        axes.set_visible(False)
    for axes, (title, groups) in zip(panels, settings.items(), strict=False):
        for place, one in enumerate(groups):
            _curve(axes, place, one)
        axes.set_title(title)
        axes.set_ylabel(f"mean client {groups[0].metric}, %, mean over seeds")
        canvas.by_round(axes)
        if axes.lines:
            axes.legend(fontsize=8)
    return figure


@canvas.styled
def intervals(settings: Settings, baseline: str) -> Figure:
    """A row a setting: scores on the left, differences from the baseline on the right.

    Args:
        baseline: a group's label.
    """
    height = 1.0 + 0.34 * max(map(len, settings.values()))
    figure, panels = canvas.panels(len(settings), height, 2, 10, ratios=(1.2, 1))
    for number, (title, groups) in enumerate(settings.items()):
        left, right = panels[2 * number : 2 * number + 2]
        theirs = next(one.by_seed() for one in groups if one.label == baseline)
        for place, one in enumerate(groups):
            ours = one.by_seed()
            _interval(left, place, list(ours.values()))
            start = spread(list(one.by_seed(0).values())).mean
            if start is not None:
                at = [place - 0.5, place + 0.5]
                left.plot([start] * 2, at, "--", color=canvas.GREY, linewidth=1, zorder=0)
            if one.label != baseline:
                _interval(right, place, list(paired(ours, theirs).values()))
        right.axvline(0, color=canvas.GREY, linewidth=1, zorder=0)
        for axes, names in ((left, [one.label for one in groups]), (right, [""] * len(groups))):
            canvas.name_rows(axes, names)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        left.set_title(title)
        left.set_xlabel(f"{groups[0].metric} after the last round, % (dashed: round 0)", fontsize=9)
        right.set_xlabel(f"points against {baseline}, same seeds", fontsize=9)
    canvas.titled(figure, "Mean over seeds with its 95 % interval; dots: single seeds", 9)
    return figure


def _curve(axes: Axes, place: int, one: Group, band: bool = False) -> dict[int, float]:
    """Draw a group's mean over seeds, of rounds that all clients scored; the means by round."""
    each = {k: values for k in range(one.last + 1) if (values := one.values(k))}
    means = {number: statistics.fmean(values) for number, values in each.items()}
    if not means:
        return {}
    dashes = DASHES[place // len(canvas.PALETTE) % len(DASHES)]
    label = f"{one.label} (n = {len(one.runs)})"
    color = canvas.shade(place)
    canvas.line(axes, means, color, canvas.mark(place), label=label, linestyle=dashes)
    if band and len(one.runs) > 1:
        wide = {number: statistics.stdev(values) for number, values in each.items()}
        low, high = ([means[k] + sign * wide[k] for k in means] for sign in (-1, 1))
        axes.fill_between(list(means), low, high, color=color, alpha=0.2, linewidth=0)
    return means


def _interval(axes: Axes, place: int, values: Sequence[float]) -> None:
    """A diamond at the mean, a line over its interval, a dot a seed; as far as there are any."""
    color, found = canvas.shade(place), spread(values)
    if found.mean is not None:
        axes.plot(found.mean, place, "D", color=color, markersize=6, zorder=3)
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [place] * 2, color=color, linewidth=2, zorder=2)
    below = [place + 0.22] * len(values)
    axes.plot(values, below, "o", color=color, markersize=3, alpha=0.6)
