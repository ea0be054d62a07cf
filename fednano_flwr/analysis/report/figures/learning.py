"""What a run learns: accuracy and loss from round to round, accuracy by kind of question."""

from __future__ import annotations

from matplotlib.axes import Axes

from fednano_flwr.analysis.report import facts
from fednano_flwr.analysis.report.canvas import (
    BLUE,
    GREY,
    INK,
    PALETTE,
    Missing,
    Picture,
    by_round,
    colour,
    key_below,
    marker,
    panels,
    short,
    styled,
)
from fednano_flwr.runs.comparable import scorers
from fednano_flwr.runs.results import Run

MOST_KINDS = 24
"""Bars; with more, the kinds with the fewest questions are left out."""
MOST_LETTERS = 26


@styled
def accuracy(run: Run) -> Picture | Missing:
    """Mean over clients in bold, each client thin, the frozen model's mean as a level line."""
    name, title = "accuracy", "Accuracy by round"
    scored = [record for record in facts.whole(run) if record["accuracy"] is not None]
    if not scored:
        return Missing(name, title, "no client has a test question")
    figure, (axes,) = panels(height=3.6)
    _clients(axes, run, "accuracy_per_client", 100)
    rounds = [record["round"] for record in scored]
    means = [100 * record["accuracy"] for record in scored]
    axes.plot(rounds, means, color=INK, linewidth=2.6, marker="o", markersize=5, label="mean")
    if rounds[0] == 0:
        axes.axhline(means[0], color=INK, linestyle="--", linewidth=1, label="frozen model, mean")
    axes.set_title(title)
    axes.set_ylabel("accuracy on own test questions, %")
    by_round(axes)
    key_below(figure, [axes])
    top = facts.best(run)
    left_out = len(run.rounds) - len(scored)
    first = "round 0 (the frozen model)" if rounds[0] == 0 else f"round {rounds[0]}"
    words = (
        f"Mean accuracy of {len(scorers(scored[0]))} clients: {means[0]:.1f} % in {first}, "
        f"{means[-1]:.1f} % in round {rounds[-1]}; best {100 * top['accuracy']:.1f} "
        f"% in round {top['round']}."
    )
    note = "Each client is scored on its own test questions; the mean counts every client alike."
    if left_out:
        note += (
            f" The mean leaves out {left_out} round(s) that not all clients scored: there it would "
            "be of other questions."
        )
    return Picture(name, title, words, note, figure)


@styled
def loss(run: Run) -> Picture | Missing:
    """Mean over clients, weighted by their questions, in bold; each client thin."""
    name, title = "loss", "Training loss by round"
    rounds, means = facts.points(run, "train_loss")
    if not rounds:
        return Missing(name, title, "no round of training has been done")
    figure, (axes,) = panels(height=3.6)
    _clients(axes, run, "train_loss_per_client", 1)
    axes.plot(rounds, means, color=INK, linewidth=2.6, marker="o", markersize=5, label="mean")
    axes.set_title(title)
    axes.set_ylabel("mean cross-entropy, nats")
    by_round(axes, "round")
    key_below(figure, [axes])
    words = (
        f"Mean training loss: {means[0]:.3f} in round {rounds[0]}, {means[-1]:.3f} in round "
        f"{rounds[-1]}."
    )
    note = (
        "Mean over a client's steps of the round, so measured while its adapters change. The bold "
        "line weighs clients by their training questions."
    )
    return Picture(name, title, words, note, figure)


@styled
def kinds(run: Run) -> Picture | Missing:
    """Bars for each kind and subject of question: round 0 and the last round."""
    name, title = "kinds", "Accuracy by kind of question"
    first, last = facts.frozen(run), facts.whole(run)[-1]
    shown = sorted(last["accuracy_by"], key=lambda kind: -last["accuracy_by"][kind]["questions"])
    left_out, shown = len(shown[MOST_KINDS:]), shown[:MOST_KINDS]
    if not shown:
        return Missing(name, title, "no client has a test question")
    figure, (axes,) = panels(height=1.4 + 0.42 * len(shown))
    bars = [(f"round {last['round']}", last, BLUE, -0.19)] if last is not first else []
    if first is not None:
        bars += [("round 0 (frozen model)", first, GREY, 0.19 if bars else 0)]
    for label, record, shade, shift in bars:
        known = [
            (place, 100 * record["accuracy_by"][kind]["accuracy"])
            for place, kind in enumerate(shown)
            if kind in record["accuracy_by"]
        ]
        if not known:
            continue
        places = [place + shift for place, _ in known]
        drawn = axes.barh(places, [v for _, v in known], height=0.36, color=shade, label=label)
        axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8.5)
    rows = [
        f"{short(kind, MOST_LETTERS)} ({last['accuracy_by'][kind]['questions']})" for kind in shown
    ]
    axes.set_yticks(range(len(shown)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.set_xlabel("accuracy, %")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    key_below(figure, [axes], 2)
    before = first["accuracy_by"] if first else {}
    words = "; ".join(
        f"{kind} ({values['questions']} questions): "
        f"{facts.percent(before.get(kind, {}).get('accuracy'))} → "
        f"{facts.percent(values['accuracy'])}"
        for kind in shown
        for values in [last["accuracy_by"][kind]]
    )
    note = (
        "Over the test questions of all clients together, whose number is in brackets; a question "
        "counts in each kind that it is of."
    )
    if left_out:
        note += f" {left_out} kinds with fewer questions are not drawn."
    return Picture(name, title, f"Round 0 → round {last['round']}: {words}.", note, figure)


def _clients(axes: Axes, run: Run, key: str, factor: float) -> None:
    """A thin line a client; named where there are few enough to be told apart."""
    everyone = facts.clients(run)
    few = len(everyone) <= len(PALETTE)
    for place, client in enumerate(everyone):
        rounds, values = facts.points(run, key, client, factor)
        axes.plot(
            rounds,
            values,
            color=colour(place, len(everyone)),
            marker=marker(place, len(everyone)) or ".",
            markersize=3.5,
            linewidth=1.1,
            alpha=1 if few else 0.6,
            label=f"client {client}" if few else f"each of {len(everyone)} clients",
        )
