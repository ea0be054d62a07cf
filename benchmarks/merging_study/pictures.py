"""Rows as pictures of docs/merging.md: accuracy by uploaded MB, by round and by ε."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.merging_study.lines import lines_of
from benchmarks.merging_study.plan import CORE, PARTS, PRIVACY, Setting
from benchmarks.merging_study.rows import Row
from benchmarks.study.plan import ROOT
from fednano_flwr.analysis import canvas
from fednano_flwr.analysis.figures.comparison import DASHES
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.base.files import replace_file

FOLDER = ROOT / "docs" / "merging"
Curves = Mapping[str, Sequence[tuple[float, float]]]
"""A method to its points."""


def write_pictures(rows: Sequence[Row]) -> None:
    """Draw what there are rows for."""
    for picture in pictures(rows):
        if picture.figure:
            replace_file(FOLDER / f"{picture.name}.svg", picture.files()["svg"])


def pictures(rows: Sequence[Row]) -> list[Picture]:
    """All of them; one without rows has no figure."""
    part = PARTS[CORE]
    core = [Setting(clients, min(alpha for _, alpha in part.settings)) for clients in part.rates]
    uploads = {f"{one.clients} clients": curves(CORE, one, rows, megabytes=True) for one in core}
    by_round = {
        name: {f"{one.clients} clients": curves(name, one, rows) for one in PARTS[name].settings}
        for name in ("fisher", "participation")
    }
    return [
        drawn("upload", uploads, "uploaded by all clients, MB"),
        *(drawn(name, panels, canvas.ROUND) for name, panels in by_round.items()),
        drawn(PRIVACY, {"15 of 50 clients a round": by_epsilon(rows)}, "ε of all rounds"),
    ]


def curves(name: str, setting: Setting, rows: Sequence[Row], megabytes: bool = False) -> Curves:
    """Accuracy after each round, over rounds or over the MB that were uploaded until then."""
    found = {}
    for line in (line for line in lines_of(name, setting, rows) if line.rows):
        each = (line.spread("upload_kb_a_round").mean or 0.0) / 1e3 if megabytes else 1.0
        found[line.method] = [(k * each, accuracy) for k, accuracy in enumerate(line.by_round)]
    return found


def by_epsilon(rows: Sequence[Row]) -> Curves:
    """Accuracy after the last round over the ε that was spent."""
    found: dict[str, list[tuple[float, float]]] = {}
    (setting,) = PARTS[PRIVACY].settings
    for line in lines_of(PRIVACY, setting, rows):
        if line.rows:
            point = line.rows[0].epsilon or 0.0, line.by_round[-1]
            found[line.method] = sorted([*found.get(line.method, []), point])
    return found


@canvas.styled
def drawn(name: str, panels: Mapping[str, Curves], across: str) -> Picture:
    """Mean accuracy over seeds, a panel each, a line a method."""
    title, up = f"Mean accuracy over {across}", "mean accuracy of clients, %"
    if not any(panels.values()):
        return Picture(name, title, reason="nothing has been run")
    wide = canvas.WIDTH * min(len(panels), 2)
    figure, axes = canvas.panels(height=3.6, columns=len(panels), width=wide)
    names, words = list(dict.fromkeys(one for each in panels.values() for one in each)), []
    for axis, (head, each) in zip(axes, panels.items(), strict=True):
        for method, points in each.items():
            place = names.index(method)
            looks = canvas.mark(place) + DASHES[place // len(canvas.PALETTE) % len(DASHES)]
            axis.plot(*zip(*points, strict=True), looks, color=canvas.shade(place), label=method)
            words.append(f"{head}, {method}: {points[-1][1]:.1f} % at {points[-1][0]:.3g}")
        axis.set(title=head, xlabel=across, ylabel=up if axis is axes[0] else "")
    canvas.key_below(figure, axes, 4)
    return Picture(name, title, figure, f"{'; '.join(words)}.")
