"""The figures of a run, in the order of the page: each a pure function from the run to a picture.

A new figure is a function here and a line in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from fednano_flwr.analysis.report.canvas import Missing, Picture
from fednano_flwr.analysis.report.figures import cost, learning, merging, shards
from fednano_flwr.runs.results import Run

Draw = Callable[[Run], Picture | Missing]

SECTIONS: dict[str, tuple[Draw, ...]] = {
    "Learning": (learning.accuracy, learning.loss, learning.kinds),
    "Who has what": (shards.questions, shards.groups),
    "What it took": (cost.traffic, cost.seconds, cost.memory),
    "Merging and privacy": (merging.notes, merging.budget),
}


def draw(run: Run) -> dict[str, list[Picture | Missing]]:
    """All figures by section."""
    return {section: [one(run) for one in drawn] for section, drawn in SECTIONS.items()}
