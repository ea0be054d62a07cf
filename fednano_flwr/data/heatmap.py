"""A picture of who has what: clients by groups, each cell shaded by its number of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

INCHES_A_CELL = (0.42, 0.3)
MOST_NUMBERS = 1500
"""Cells; with more, the numbers would not be readable and are left out."""
MOST_LABELS = 300
"""Clients; with more, they are not named and the rows become thinner."""


def draw_heatmap(table: Mapping[str, Sequence[int]], file: Path, title: str) -> None:
    """Write the table as a PNG; needs no display.

    Shades grow with the square root of the count, so that small shares can still be told from none.

    Args:
        table: group to a count a client.
    """
    import numpy as np
    import seaborn
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = np.array(list(table.values())).T  # (clients, groups)
    clients, groups = counts.shape
    named = clients <= MOST_LABELS
    labels = [f"{group}  ({total})" for group, total in zip(table, counts.sum(0), strict=True)]
    margin = 0.075 * max(map(len, labels))  # inches that the turned labels take
    height = INCHES_A_CELL[1] * min(clients, MOST_LABELS)
    size = (INCHES_A_CELL[0] * groups + 3.5, height + margin + 1)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = seaborn.heatmap(
        counts,
        ax=figure.add_subplot(),
        cmap="Blues",
        norm=PowerNorm(0.5, vmin=0, vmax=max(int(counts.max()), 1)),
        annot=np.where(counts, counts.astype(str), "") if counts.size <= MOST_NUMBERS else None,
        fmt="",
        annot_kws={"fontsize": 6.5},
        linewidths=0.6 if named else 0,
        linecolor="#d8d8d8",
        xticklabels=labels,
        yticklabels=[f"client {k}  ({n})" for k, n in enumerate(counts.sum(1))] if named else False,
        cbar_kws={"label": "training questions", "shrink": 0.9, "pad": 0.01},
    )
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(length=0, labelsize=8)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    axes.set_ylabel("" if named else f"{clients} clients")
    figure.savefig(file, dpi=150, bbox_inches="tight")  # a title may be wider than few groups
