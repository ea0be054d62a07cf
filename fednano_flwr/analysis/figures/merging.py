"""What the strategy saw in its merges, and what privacy they have spent."""

from __future__ import annotations

from statistics import fmean

from fednano_flwr.analysis import canvas
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.models.lora import PREFIX
from fednano_flwr.runs.results import Run

KINDS = {
    "fisher scale": ("Fisher scale", "largest ÷ smallest client"),
    "fisher": ("Mean Fisher value of a tensor", "loss per squared unit"),
    "residual": ("Left out by the merged rank", "share of the product"),
    "missed by factors": ("Missed by a mean of factors", "share of the mean"),
    "rank of map": ("Rank of the map at the host", "directions"),
    "server rate": ("How far the server went", "× the mean change"),
    "clip norm": ("Clip norm", "norm of an update"),
    "noise stddev": ("Noise on the mean", "standard deviation"),
}
"""Title and unit of each kind of note, by how its name begins; longer ones first where one begins
another."""
AT_LLM = "llm: "
"""Before the label of layers inside the language model."""
NOT_HERE = ("epsilon", "delta", "clients")
"""Of the privacy budget, which has a figure of its own."""
MOST_PANELS = 6
MOST_LETTERS = 44


@canvas.styled
def notes(run: Run) -> Picture:
    """A panel each kind of note, a line each tensor, or all like ones in the language model."""
    name, title = "merge", "What the merges saw"
    by_kind = _by_kind(run)
    if not by_kind:
        return Picture(name, title, reason="the strategy notes nothing of its merges")
    shown = list(by_kind.items())[:MOST_PANELS]
    figure, axes = canvas.panels(len(shown), 2.3)
    said = []
    for panel, (kind, lines) in zip(axes, shown, strict=True):
        heading, unit = KINDS.get(kind, (canvas.short(kind, MOST_LETTERS), "value"))
        for place, (label, values) in enumerate(lines.items()):
            color = canvas.shade(place) if label else canvas.INK
            shown_as = canvas.short(label, MOST_LETTERS // 2) or None
            canvas.line(panel, values, color, canvas.mark(place), 4, 1.4, shown_as)
            last = values[max(values)]
            said.append(f"{heading}{f', {label}' if label else ''}: {last:.3g} in the last round")
        panel.set_title(heading)
        panel.set_ylabel(unit)
        panel.margins(y=0.15)
        canvas.by_round(panel, "round")
    canvas.key_below(figure, axes, 2)
    note = "What each means: docs/merging.md and docs/privacy.md."
    if any(label.startswith(AT_LLM) for lines in by_kind.values() for label in lines):
        note += " Inside the language model, the mean over its layers."
    if len(by_kind) > len(shown):
        note += f" {len(by_kind) - len(shown)} more kinds of notes are in metrics.jsonl."
    return Picture(name, title, figure, "; ".join(said) + ".", note)


@canvas.styled
def budget(run: Run) -> Picture:
    """The privacy budget spent up to each round."""
    name, title = "privacy", "Privacy budget spent"
    spent = {
        record["round"]: record["merge"]["epsilon"]
        for record in run.rounds
        if "epsilon" in record.get("merge", {})
    }
    if not spent and run.config.privacy.dp == "none":
        reason = "the run has no differential privacy (privacy.dp is none)"
        return Picture(name, title, reason=reason)
    if not spent:
        return Picture(name, title, reason="no round of training has been done")
    figure, (axes,) = canvas.panels(height=2.8)
    canvas.line(axes, spent, size=6, width=2)
    axes.set_ylim(bottom=0)
    canvas.finish(figure, axes, title, "ε (no unit)", label="round")
    last, delta = max(spent), run.config.privacy.delta
    words = f"ε = {spent[last]:.2f} at δ = {delta:g} after round {last}."
    note = f"Of all rounds up to each, at δ = {delta:g}. What it promises: docs/privacy.md."
    return Picture(name, title, figure, words, note)


def _by_kind(run: Run) -> dict[str, dict[str, dict[int, float]]]:
    """Kind to label to round to value, the mean where several tensors have one label.

    The label is "" where a kind is one number.
    """
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for record in run.rounds:
        for name, value in record.get("merge", {}).items():
            if name in NOT_HERE:
                continue
            kind = next((k for k in KINDS if name == k or name.startswith(f"{k} ")), name)
            values = found.setdefault(kind, {}).setdefault(_label(name.removeprefix(kind)), {})
            values.setdefault(record["round"], []).append(value)
    return {
        kind: {
            label: {number: fmean(values) for number, values in rounds.items()}
            for label, rounds in lines.items()
        }
        for kind, lines in found.items()
    }


def _label(tensor: str) -> str:
    """A tensor in a key; inside the language model, alike for all layers."""
    label = tensor.strip().removeprefix("base_model.model.").removesuffix(".weight")
    if not label.startswith(PREFIX):
        return label
    parts = label.split(".")
    return f"{AT_LLM}{'.'.join(parts[-2:] if parts[-1].startswith('lora_') else parts[-1:])}"
