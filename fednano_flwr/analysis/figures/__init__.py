"""The figures of a run, in the order of the page: each a pure function from the run to a picture.

A new figure is a function here and a line in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from fednano_flwr.analysis.figures import cost, learning, merging, shards
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.runs.results import Run

SECTIONS: dict[str, tuple[Callable[[Run], Picture], ...]] = {
    "Learning": (learning.accuracy, learning.test_loss, learning.loss, learning.kinds),
    "Who has what": (shards.questions, shards.groups),
    "What it took": (cost.traffic, cost.seconds, cost.memory),
    "Merging and privacy": (merging.notes, merging.budget),
}


def draw(run: Run) -> dict[str, list[Picture]]:
    """All figures by section."""
    return {section: [one(run) for one in drawn] for section, drawn in SECTIONS.items()}
