"""A picture of who has what: clients by groups, each cell shaded by its number of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

INCHES_A_CELL = (0.42, 0.3)
MOST_NUMBERS = 1500
"""Cells; with more, the numbers would not be readable and are left out."""
MOST_LABELS = 300
"""Clients; with more, they are not named and the rows become thinner."""
DARK = 0.55
"""Shade, 0 to 1, from which a cell's number is written in white."""


def draw_heatmap(table: Mapping[str, Sequence[int]], file: Path, title: str) -> None:
    """Write the table as a PNG; needs no display.

    Shades grow with the square root of the count, so that small shares can still be told from none.

    Args:
        table: group to a count a client, as `group_table` gives it.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    groups = list(table)
    counts = np.array([table[group] for group in groups]).T  # (clients, groups)
    clients = len(counts)
    width = INCHES_A_CELL[0] * len(groups)
    height = INCHES_A_CELL[1] * min(clients, MOST_LABELS)
    labels = [
        f"{group}  ({total})" for group, total in zip(groups, counts.sum(axis=0), strict=True)
    ]
    margin = 0.075 * max(map(len, labels))  # inches that the turned labels take
    figure = Figure(figsize=(width + 3.5, height + margin + 1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    norm = PowerNorm(0.5, vmin=0, vmax=max(int(counts.max()), 1))
    drawn = axes.imshow(counts, cmap="Blues", norm=norm, aspect="auto")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xticks(range(len(groups)), labels, rotation=90, fontsize=8)
    totals = [f"client {k}  ({total})" for k, total in enumerate(counts.sum(axis=1))]
    if clients <= MOST_LABELS:
        axes.set_yticks(range(clients), totals, fontsize=8)
        axes.set_yticks([y - 0.5 for y in range(1, clients)], minor=True)
    else:
        axes.set_ylabel(f"{clients} clients")
    axes.set_xticks([x - 0.5 for x in range(1, len(groups))], minor=True)
    axes.grid(which="minor", color="#d8d8d8", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    for side in axes.spines.values():
        side.set_color("#d8d8d8")
    if counts.size <= MOST_NUMBERS:
        for (client, group), count in np.ndenumerate(counts):
            if count:
                colour = "white" if norm(count) > DARK else "black"
                axes.text(
                    group, client, str(count), ha="center", va="center", color=colour, fontsize=6.5
                )
    figure.colorbar(drawn, ax=axes, label="training questions", shrink=0.9, pad=0.01)
    figure.savefig(file, dpi=150, bbox_inches="tight")  # a title may be wider than few groups
