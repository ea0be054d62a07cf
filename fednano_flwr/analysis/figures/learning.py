"""What a run learns: score and losses from round to round, score by kind of question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fednano_flwr.analysis import canvas, facts
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.runs.comparable import scorers
from fednano_flwr.runs.results import Run
from fednano_flwr.runs.summary import percent, titled

MOST_KINDS = 24
"""Bars; with more, the kinds with the fewest questions are left out."""
MOST_LETTERS = 26


@canvas.styled
def accuracy(run: Run) -> Picture:
    """Mean over clients in bold, each client thin, the frozen model's mean as a level line."""
    label = metric_label(run.config)
    name, title = "accuracy", f"{titled(label)} by round"
    scored = [record for record in facts.comparable(run) if record["accuracy"] is not None]
    if not scored:
        return Picture(name, title, reason="no client has a test question")
    means = {record["round"]: 100 * record["accuracy"] for record in scored}
    figure, axes = _client_lines(run, "accuracy_per_client", 100, means)
    first, last = min(means), max(means)
    if first == 0:
        axes.axhline(
            means[0], color=canvas.INK, linestyle="--", linewidth=1, label="frozen model, mean"
        )
    canvas.finish(figure, axes, title, f"{label} on own test questions, %")
    best = max(means, key=lambda number: means[number])
    words = (
        f"Mean {label} of {len(scorers(scored[0]))} clients: {means[first]:.1f} % in "
        f"{'round 0 (the frozen model)' if first == 0 else f'round {first}'}, "
        f"{means[last]:.1f} % in round {last}; best {means[best]:.1f} % in round {best}."
    )
    note = "Each client is scored on its own test questions; the mean counts every client alike."
    if left_out := len(run.rounds) - len(scored):
        note += (
            f" The mean leaves out {left_out} round(s) that not all clients scored: there it would "
            "be of other questions."
        )
    return Picture(name, title, figure, words, note)


@canvas.styled
def loss(run: Run) -> Picture:
    """Mean over clients, weighted by their questions, in bold; each client thin."""
    name, title = "loss", "Training loss by round"
    means = {r["round"]: r["train_loss"] for r in run.rounds if r["train_loss"] is not None}
    if not means:
        return Picture(name, title, reason="no round of training has been done")
    figure, axes = _client_lines(run, "train_loss_per_client", 1, means)
    canvas.finish(figure, axes, title, "mean cross-entropy, nats", label="round")
    first, last = min(means), max(means)
    words = (
        f"Mean training loss: {means[first]:.3f} in round {first}, {means[last]:.3f} in round "
        f"{last}."
    )
    note = (
        "Mean over a client's steps of the round, so measured while its adapters change. The bold "
        "line weighs clients by their training questions."
    )
    return Picture(name, title, figure, words, note)


@canvas.styled
def test_loss(run: Run) -> Picture:
    """Mean over clients in bold, each client thin, of rounds that all clients scored."""
    name, title = "test_loss", "Test loss by round"
    scored = [r for r in facts.comparable(run) if r.get("test_loss") is not None]
    if not scored:
        return Picture(name, title, reason="the rounds have none")
    means = {record["round"]: record["test_loss"] for record in scored}
    figure, axes = _client_lines(run, "test_loss_per_client", 1, means)
    canvas.finish(figure, axes, title, "mean −log p of a token, nats", label="round")
    first, last = min(means), max(means)
    words = (
        f"Mean test loss: {means[first]:.3f} in round {first}, {means[last]:.3f} in round {last}."
    )
    note = (
        "Mean −log p of the tokens of the right answers to a client's own test questions; the mean "
        "counts every client alike."
    )
    return Picture(name, title, figure, words, note)


@canvas.styled
def kinds(run: Run) -> Picture:
    """Bars for each kind and subject of question: round 0 and the last round."""
    metric = metric_label(run.config)
    name, title = "kinds", f"{titled(metric)} by kind of question"
    first, last = facts.frozen(run), facts.comparable(run)[-1]
    now: Mapping[str, Any] = last["accuracy_by"]
    before: Mapping[str, Any] = first["accuracy_by"] if first else {}
    order = sorted(now, key=lambda kind: -now[kind]["questions"])
    shown, left_out = order[:MOST_KINDS], len(order[MOST_KINDS:])
    if not shown:
        return Picture(name, title, reason="no client has a test question")
    figure, (axes,) = canvas.panels(height=1.4 + 0.42 * len(shown))
    after = f"round {last['round']}"
    bars = [(after, now, canvas.BLUE, -0.19)] if last is not first else []
    if first is not None:
        bars += [("round 0 (frozen model)", before, canvas.GREY, 0.19 if bars else 0)]
    for label, found, shade, shift in bars:
        values = {
            place + shift: 100 * found[kind]["accuracy"]
            for place, kind in enumerate(shown)
            if kind in found
        }
        if values:
            drawn = axes.barh(
                list(values), list(values.values()), height=0.36, color=shade, label=label
            )
            axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8.5)
    rows = [f"{canvas.short(kind, MOST_LETTERS)} ({now[kind]['questions']})" for kind in shown]
    axes.set_yticks(range(len(shown)), rows)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.set_xlabel(f"{metric}, %")
    canvas.titled(figure, title)
    canvas.key_below(figure, [axes], 2)
    words = "; ".join(
        f"{kind} ({now[kind]['questions']} questions): "
        f"{percent(before.get(kind, {}).get('accuracy'))} → "
        f"{percent(now[kind]['accuracy'])}"
        for kind in shown
    )
    note = (
        "Over the test questions of all clients together, whose number is in brackets; a question "
        "counts in each kind that it is of."
    )
    if left_out:
        note += f" {left_out} kinds with fewer questions are not drawn."
    return Picture(name, title, figure, f"Round 0 → {after}: {words}.", note)


def _client_lines(
    run: Run, key: str, factor: float, means: Mapping[int, float]
) -> tuple[Figure, Axes]:
    """A bold line of the means by round over a thin line a client.

    Clients have colours and names where there are few enough to be told apart.

    Args:
        key: of what a record has by client; the values are multiplied by `factor`.
    """
    figure, (axes,) = canvas.panels(height=3.6)
    everyone = facts.clients(run)
    few = len(everyone) <= len(canvas.PALETTE)
    for place, client in enumerate(everyone):
        values = {r["round"]: r.get(key, {}).get(client) for r in run.rounds}
        known = {number: factor * v for number, v in values.items() if v is not None}
        label = f"client {client}" if few else f"each of {len(everyone)} clients"
        color, marker = (canvas.shade(place), canvas.mark(place)) if few else (canvas.GREY, ".")
        canvas.line(axes, known, color, marker, 3.5, 1.1, label, alpha=1 if few else 0.6)
    canvas.line(axes, means, canvas.INK, "o", 5, 2.6, "mean")
    return figure, axes
