"""Which client has which questions."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import PowerNorm

from fednano_flwr.analysis.report import facts
from fednano_flwr.analysis.report.canvas import (
    BLUE,
    ORANGE,
    Missing,
    Picture,
    by_round,
    key_below,
    panels,
    short,
    styled,
)
from fednano_flwr.analysis.report.shares import read_shares
from fednano_flwr.runs.results import Run

MOST_GROUPS = 30
"""Rows; with more, the groups with the fewest questions are left out."""
MOST_NUMBERS = 12
"""Clients; with more, numbers do not fit into the cells."""
MOST_LETTERS = 24


@styled
def questions(run: Run) -> Picture | Missing:
    """Bars of training and test questions a client."""
    name, title = "questions", "Questions of each client"
    known = {kind: facts.questions(run, kind) for kind in ("train", "test")}
    if not any(known.values()):
        return Missing(name, title, "the run has not counted any")
    figure, (axes,) = panels(height=3.2)
    places = {client: place for place, client in enumerate(facts.clients(run))}
    for kind, shade, shift in (("train", BLUE, -0.2), ("test", ORANGE, 0.2)):
        axes.bar(
            [places[client] + shift for client in known[kind]],
            list(known[kind].values()),
            0.38,
            color=shade,
            label={"train": "training", "test": "test"}[kind],
        )
    axes.set_title(title)
    axes.set_ylabel("questions")
    by_round(axes, "client")
    if len(places) <= MOST_NUMBERS:
        axes.set_xticks(list(places.values()), list(places))
    key_below(figure, [axes], 2)
    words = "; ".join(
        f"client {c}: {known['train'].get(c, 'unknown')} training, {known['test'].get(c, 0)} test"
        for c in list(places)[:MOST_NUMBERS]
    )
    if len(places) > MOST_NUMBERS:
        words += f"; and {len(places) - MOST_NUMBERS} more clients"
    note = "As the clients counted them; training questions are known of clients that trained."
    return Picture(name, title, f"{words}.", note, figure)


@styled
def groups(run: Run) -> Picture | Missing:
    """Heat map, groups by clients: training questions that were dealt."""
    name, title = "groups", "Training questions by group and client"
    shares = read_shares(run)
    if isinstance(shares, str):
        return Missing(name, title, shares)
    order = sorted(shares, key=lambda group: -sum(shares[group]))
    shown, left_out = order[:MOST_GROUPS], len(order[MOST_GROUPS:])
    counts = np.array([shares[group] for group in shown])  # (groups, clients)
    figure, (axes,) = panels(height=1.3 + 0.27 * len(shown))
    norm = PowerNorm(0.5, vmin=0, vmax=max(int(counts.max()), 1))
    drawn = axes.pcolormesh(
        np.ma.masked_equal(counts, 0), cmap="cividis", norm=norm, edgecolors="none"
    )
    axes.invert_yaxis()
    axes.grid(False)
    centres = np.arange(len(shown)) + 0.5
    axes.set_yticks(centres, [short(group, MOST_LETTERS) for group in shown], fontsize=9)
    clients = counts.shape[1]
    if clients <= MOST_NUMBERS:
        axes.set_xticks(np.arange(clients) + 0.5, [str(k) for k in range(clients)])
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "black" if norm(count) > 0.47 else "white"
                at = (column + 0.5, row + 0.5)
                axes.annotate(str(count), at, ha="center", va="center", color=shade, fontsize=8.5)
    axes.tick_params(length=0)
    axes.set_xlabel("client")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    figure.colorbar(drawn, ax=axes, label="questions", aspect=30)
    words = "; ".join(
        f"{group}: {', '.join(map(str, shares[group][:MOST_NUMBERS]))}"
        for group in shown[:MOST_NUMBERS]
    )
    note = (
        "Dealt again from the run's config and the data set as it is on this machine now; the sums "
        "are those that the clients counted. An empty cell is none."
    )
    if left_out:
        note += f" {left_out} groups with fewer questions are not drawn."
    who = f"clients 0 to {min(clients, MOST_NUMBERS) - 1}"
    return Picture(name, title, f"Questions of {who} by group. {words}.", note, figure)
