"""Which client has which questions."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.colors import PowerNorm

from fednano_flwr.analysis import canvas, facts
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.base.resources import ResourceError, resolve
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.shard import read_shards
from fednano_flwr.runs.results import Run

MOST_GROUPS = 30
"""Rows; with more, the groups with the fewest questions are left out."""
MOST_NUMBERS = 12
"""Clients; with more, numbers do not fit into the cells."""
MOST_LETTERS = 24


@canvas.styled
def questions(run: Run) -> Picture:
    """Bars of training and test questions a client."""
    name, title = "questions", "Questions of each client"
    train, test = (facts.questions(run, kind) for kind in ("train", "test"))
    if not train and not test:
        return Picture(name, title, reason="the run has not counted any")
    figure, (axes,) = canvas.panels(height=3.2)
    places = {client: place for place, client in enumerate(facts.clients(run))}
    bars = (("training", train, canvas.BLUE, -0.2), ("test", test, canvas.ORANGE, 0.2))
    for label, counts, shade, shift in bars:
        at = [places[client] + shift for client in counts]
        axes.bar(at, list(counts.values()), 0.38, color=shade, label=label)
    canvas.finish(figure, axes, title, "questions", 2, "client")
    if len(places) <= MOST_NUMBERS:
        axes.set_xticks(list(places.values()), list(places))
    words = "; ".join(
        f"client {client}: {train.get(client, 'unknown')} training, {test.get(client, 0)} test"
        for client in list(places)[:MOST_NUMBERS]
    )
    if len(places) > MOST_NUMBERS:
        words += f"; and {len(places) - MOST_NUMBERS} more clients"
    note = "As the clients counted them; training questions are known of clients that trained."
    return Picture(name, title, figure, f"{words}.", note)


@canvas.styled
def groups(run: Run) -> Picture:
    """Heat map, groups by clients: training questions that were dealt."""
    name, title = "groups", "Training questions by group and client"
    shares = dealt_again(run)
    if isinstance(shares, str):
        return Picture(name, title, reason=shares)
    order = sorted(shares, key=lambda group: -sum(shares[group]))
    shown, left_out = order[:MOST_GROUPS], len(order[MOST_GROUPS:])
    counts = np.array([shares[group] for group in shown])  # (groups, clients)
    figure, (axes,) = canvas.panels(height=1.3 + 0.27 * len(shown))
    norm = PowerNorm(0.5, vmin=0, vmax=max(int(counts.max()), 1))
    drawn = axes.pcolormesh(
        np.ma.masked_equal(counts, 0), cmap="cividis", norm=norm, edgecolors="none"
    )
    axes.invert_yaxis()
    axes.grid(False)
    names = [canvas.short(group, MOST_LETTERS) for group in shown]
    axes.set_yticks(np.arange(len(shown)) + 0.5, names, fontsize=9)
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
    canvas.titled(figure, title)
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
    return Picture(name, title, figure, f"Questions of {who} by group. {words}.", note)


def dealt_again(run: Run) -> dict[str, list[int]] | str:
    """Group to training questions a client, or why they are not known.

    A run keeps no such counts. They follow from its config and the data set; where the data set is
    not on this machine (nothing is downloaded), or the clients had shards of their own, they cannot
    be known, and are not guessed.
    """
    dataset, clients = run.config.dataset, facts.clients(run)
    if clients != [str(k) for k in range(len(clients))]:
        return "it is not known how many clients the data set was dealt to"
    try:
        if not resolve("dataset.path", dataset.path, write=False).exists():
            return f"the data set {dataset.path} is not on this machine"
        dealt = read_shards(dataset, run.config.seed, len(clients))
        shards = [(Counter(shard.train.groups), len(shard.test)) for shard in dealt]
    except (DataError, ResourceError, OSError, ImportError, ValueError) as error:
        return f"the data set cannot be read here: {str(error).splitlines()[0]}"
    counted = {kind: facts.questions(run, kind) for kind in ("train", "test")}
    for client, (train, test) in zip(clients, shards, strict=True):
        for kind, here in (("train", train.total()), ("test", test)):
            then = counted[kind].get(client, here)
            if then != here:
                return (
                    f"client {client} counted {then} {kind} questions, and the data set of this "
                    f"machine would give it {here}: it is another one, or the clients had shards "
                    "of their own"
                )
    found = sorted({group for train, _ in shards for group in train})
    return {group: [train[group] for train, _ in shards] for group in found}
