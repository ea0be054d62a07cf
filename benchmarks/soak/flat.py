"""Whether what was counted again and again stays as it is, once a process has warmed up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations

Sample = Mapping[str, Mapping[str, float]]
"""What each process held, by its name, at one time."""
MEMORY, HISTORY = "own_mb", "history_mb"
ONLY_SHOWN = ("rss_mb", "objects", HISTORY)
"""Counted for people: shared pages are no process's own, and a run remembers its rounds."""


def steps(rounds: Sequence[int], values: Sequence[float]) -> float:
    """Growth a round, whichever is less of that in the earlier and the later part.

    A leak is in both; a jump, as of an allocator that takes another arena, is in one.
    """
    half = len(values) // 2
    return min(slope(rounds[:half], values[:half]), slope(rounds[half:], values[half:]))


def slope(rounds: Sequence[int], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs (Theil 1950, Sen 1968)."""
    points = list(zip(rounds, values, strict=True))
    return statistics.median((y - v) / (x - u) for (u, v), (x, y) in combinations(points, 2))


def growth(values: Sequence[float]) -> float:
    """From the median of the first fifth to that of the last."""
    part = max(1, len(values) // 5)
    return statistics.median(values[-part:]) - statistics.median(values[:part])


def complaints(
    rounds: Sequence[int], samples: Sequence[Sample], kb_a_round: float, mb: float
) -> list[str]:
    """What grows in the second half; empty where nothing does.

    Args:
        rounds: at which the samples were taken, at equal distances.
        kb_a_round, mb: what a process's own memory, less the records of the run's rounds, may grow
            by, a round and in all.
    """
    half = len(samples) // 2
    found = []
    for who, held in samples[-1].items():
        for what in held:
            values = series(samples, who, what)
            early, late = values[:half], values[half:]
            if what == MEMORY:
                a_round = 1e3 * steps(rounds[half:], late)
                if a_round > kb_a_round:
                    found.append(f"{who}: memory grows by {a_round:.1f} KB a round")
                if growth(late) > mb:
                    found.append(f"{who}: memory has grown by {growth(late):.1f} MB")
            elif what not in ONLY_SHOWN and max(late) > max(early):
                found.append(f"{who}: {what} has grown from {max(early):g} to {max(late):g}")
    return found


def series(samples: Sequence[Sample], who: str, what: str) -> list[float]:
    """One count over time; a process's memory without the run's history, which has to grow."""
    known = HISTORY if what == MEMORY else ""
    return [one[who][what] - one[who].get(known, 0.0) for one in samples]
