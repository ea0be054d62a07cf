"""An audit's results as a table, on the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fednano_flwr.base.console import table

WIDTH = 180
Row = Mapping[str, Any]


def share(value: float | None) -> str:
    """A share in per cent; a dash where there is nothing to have a share of."""
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return f"{value:g}" if value else "–"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "exchange": lambda row: row["exchange"],
    "labels at": lambda row: row["labels_at"],
    "clip": lambda row: _number(row.get("clip", 0)),
    "noise": lambda row: _number(row.get("noise", 0)),
    "text read, once": lambda row: share(row["read_once"]["all"]),
    "content read, once": lambda row: share(row["read_once"]["content"]),
    "content read, often": lambda row: share(row["read_often"]["content"]),
    "content read, often, frequencies": lambda row: share(
        row.get("read_often_weighed", {}).get("content")
    ),
    "content, blind": lambda row: share(row["most_frequent"]["content"]),
    "answers read": lambda row: share(row["answers"]),
    "accuracy, untrained": lambda row: share(row["frozen_accuracy"]),
    "accuracy": lambda row: share(row["accuracy"]),
    "rounds": lambda row: str(row["rounds"]),
}
"""Headings, and a row's text under each; shares in per cent.

Clip, noise and frequencies are those of results/privacy, from when a client could add noise.
"""


def console_table(rows: Sequence[Row]) -> str:
    """What the command prints."""
    texts = {name: [write(row) for row in rows] for name, write in COLUMNS.items()}
    said = {name: column for name, column in texts.items() if set(column) != {"–"}}
    headings = ["run", *(name.replace(", ", ",\n") for name in said)]
    cells = list(zip([row["name"] for row in rows], *said.values(), strict=True))
    times = sorted({count for row in rows for count in row["observations"]})
    return "\n".join(
        [
            table("shares in %", headings, cells, WIDTH),
            f"often: the mean of {' to '.join(map(str, times))} observations of each question; "
            "blind: the most frequent token",
            "accuracy: the run's own, in %, before the first and after its last round",
        ]
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table of the docs, without the runs' names."""
    lines = [" | ".join(COLUMNS), " | ".join(["---"] * len(COLUMNS))]
    lines += [" | ".join(write(row) for write in COLUMNS.values()) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)
