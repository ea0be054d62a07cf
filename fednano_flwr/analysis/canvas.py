"""How figures look: one style, a palette that colour-blind readers can tell apart, few helpers.

Figures are small (4.8 inches wide), so that their text can still be read on a phone. Ink and grid
have colours of their own, which a page exchanges for its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, FAINT, GREY = "#1c1d1e", "#d6d7d8", "#868b90"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    *("#0072b2", "#d55e00", "#009e73"),
    *("#cc79a7", "#e69f00", "#56b4e9"),
)
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Okabe and Ito's, without the yellow, which is not seen on white."""
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH = 4.8
"""Inches."""
ROUND = "round (0: frozen model)"
LOOKS: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "text.parse_math": False,  # a dollar sign in a name is one
    "svg.fonttype": "none",
}

styled = rc_context(LOOKS)
"""Decorator of what draws or saves a figure."""


def panels(
    rows: int = 1,
    height: float = 3.0,
    columns: int = 1,
    width: float = WIDTH,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, row by row, each `height` inches high.

    Args:
        width: of the whole figure, in inches.
        ratios: widths of the columns.
    """
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    return figure, list(axes.flat)


def line(
    axes: Axes,
    points: Mapping[int, float],
    color: str = BLUE,
    marker: str = "o",
    size: float = 4.5,
    width: float = 1.8,
    label: str | None = None,
    **style: Any,
) -> None:
    """A line through points, from round to value."""
    looks: dict[str, Any] = {
        "color": color,
        "marker": marker,
        "markersize": size,
        "linewidth": width,
    }
    axes.plot(list(points), list(points.values()), label=label, **looks, **style)


def shade(place: int) -> str:
    """The colour of what is drawn at this place; they come again and again."""
    return PALETTE[place % len(PALETTE)]


def mark(place: int) -> str:
    return MARKERS[place % len(MARKERS)]


def titled(figure: Figure, title: str, size: float = 10.5) -> None:
    """A title above the labels of the vertical axis too."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=size)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Rows from the top down, each with its name, and a grid across them."""
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")


def finish(
    figure: Figure, axes: Axes, title: str, unit: str, columns: int = 3, label: str = ROUND
) -> None:
    """Title, axes and legend of a figure with one panel, whose horizontal axis counts."""
    axes.set_title(title)
    axes.set_ylabel(unit)
    by_round(axes, label)
    key_below(figure, [axes], columns)


def by_round(axes: Axes, label: str = ROUND) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def key_below(figure: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    """One legend under all panels, each label once."""
    found: dict[str, Artist] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=min(columns, len(found)),
            columnspacing=1.2,
            handlelength=1.8,
        )


def short(text: str, letters: int) -> str:
    """At most so many letters of a label."""
    return text if len(text) <= letters else text[: letters - 1] + "…"
