"""The protocol of a tracker, and the figures of a round that it logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

LEFT_OUT = ("round",)  # it is the step that the others belong to


class Tracker(Protocol):
    """Logs the figures of one run by round."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures of a round."""

    def close(self, completed: bool = True) -> None:
        """The run has ended; `completed`: without an error."""


def scalars(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in a line of metrics.jsonl, by their path: `accuracy_per_client/3`.

    Lists, texts and what is not known are left out.
    """
    found: dict[str, float] = {}
    for key, value in record.items():
        name = prefix + str(key)
        if isinstance(value, Mapping):
            found |= scalars(value, f"{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = float(value)
    return {name: value for name, value in found.items() if name not in LEFT_OUT}
