"""Which runs a resumed run continues, as its messages and its checkpoints say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONTINUES = "continues"
"""Key of a message's config that says which runs a resumed one continues."""


@dataclass(frozen=True)
class PreviousRun:
    """A run that this one continues, and the last of its rounds that still counts; -1 for none."""

    run: str
    last_round: int


def to_config(earlier: Sequence[PreviousRun]) -> dict[str, Any]:
    """What a resumed run's messages say; nothing for a run that continues none."""
    said = [f"{one.run}@{one.last_round}" for one in earlier]
    return {CONTINUES: said} if said else {}


def from_config(config: Mapping[str, Any]) -> list[PreviousRun]:
    """The runs that `to_config` wrote among other keys."""
    parts = [str(one).rpartition("@") for one in config.get(CONTINUES, [])]
    return [PreviousRun(run, int(last)) for run, _, last in parts]
