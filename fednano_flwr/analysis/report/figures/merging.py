"""What the strategy saw in its merges, and what privacy they have spent."""

from __future__ import annotations

from fednano_flwr.analysis.report.canvas import (
    BLUE,
    INK,
    MARKERS,
    PALETTE,
    Missing,
    Picture,
    by_round,
    key_below,
    panels,
    short,
    styled,
)
from fednano_flwr.runs.results import Run

KINDS = {
    "fisher scale": ("Fisher scale", "largest ÷ smallest client"),
    "fisher": ("Mean Fisher value of a tensor", "loss per squared unit"),
    "residual": ("Left out by the merged rank", "share of the product"),
    "missed by factors": ("Missed by a mean of factors", "share of the mean"),
    "server rate": ("How far the server went", "× the mean change"),
    "clip norm": ("Clip norm", "norm of an update"),
    "noise stddev": ("Noise on the mean", "standard deviation"),
}
"""Title and unit of each kind of note, by how its name begins; longer ones first where one begins
another."""
NOT_HERE = ("epsilon", "delta", "clients")
"""Of the privacy budget, which has a figure of its own."""
MOST_PANELS = 6
MOST_LETTERS = 44


@styled
def notes(run: Run) -> Picture | Missing:
    """A panel each kind of note, a line each tensor."""
    name, title = "merge", "What the merges saw"
    by_kind = _by_kind(run)
    if not by_kind:
        return Missing(name, title, "the strategy notes nothing of its merges")
    shown = dict(list(by_kind.items())[:MOST_PANELS])
    figure, axes = panels(len(shown), 2.3)
    said = []
    for one, (kind, lines) in zip(axes, shown.items(), strict=True):
        panel, unit = KINDS.get(kind, (short(kind, MOST_LETTERS), "value"))
        for place, (label, values) in enumerate(lines.items()):
            one.plot(
                list(values),
                list(values.values()),
                color=PALETTE[place % len(PALETTE)] if label else INK,
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                linewidth=1.4,
                label=short(label, MOST_LETTERS // 2) or None,
            )
            last = list(values.values())[-1]
            said.append(f"{panel}{f', {label}' if label else ''}: {last:.3g} in the last round")
        one.set_title(panel)
        one.set_ylabel(unit)
        one.margins(y=0.15)
        by_round(one, "round")
    key_below(figure, axes, 2)
    note = "What each means: docs/merging.md and docs/privacy.md."
    if len(by_kind) > len(shown):
        note += f" {len(by_kind) - len(shown)} more kinds of notes are in metrics.jsonl."
    return Picture(name, title, "; ".join(said) + ".", note, figure)


@styled
def budget(run: Run) -> Picture | Missing:
    """The privacy budget spent up to each round."""
    name, title = "privacy", "Privacy budget spent"
    spent = {
        record["round"]: record["merge"]["epsilon"]
        for record in run.rounds
        if "epsilon" in record.get("merge", {})
    }
    if not spent:
        reason = (
            "the run has no differential privacy (privacy.dp is none)"
            if run.config.privacy.dp == "none"
            else "no round of training has been done"
        )
        return Missing(name, title, reason)
    figure, (axes,) = panels(height=2.8)
    axes.plot(list(spent), list(spent.values()), color=BLUE, marker="o", linewidth=2)
    axes.set_title(title)
    axes.set_ylabel("ε (no unit)")
    axes.set_ylim(bottom=0)
    by_round(axes, "round")
    last = list(spent)[-1]
    delta = run.config.privacy.delta
    words = f"ε = {spent[last]:.2f} at δ = {delta:g} after round {last}."
    note = f"Of all rounds up to each, at δ = {delta:g}. What it promises: docs/privacy.md."
    return Picture(name, title, words, note, figure)


def _by_kind(run: Run) -> dict[str, dict[str, dict[int, float]]]:
    """Kind to label to round to value; the label is "" where a kind is one number."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for record in run.rounds:
        for name, value in record.get("merge", {}).items():
            if name in NOT_HERE:
                continue
            kind = next((k for k in KINDS if name == k or name.startswith(f"{k} ")), name)
            label = name.removeprefix(kind).strip()
            label = label.removeprefix("base_model.model.").removesuffix(".weight")
            found.setdefault(kind, {}).setdefault(label, {})[record["round"]] = value
    return found
