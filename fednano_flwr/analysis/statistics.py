"""Means over seeds, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """A sample's mean and spread; None where there are too few values to tell.

    Attributes:
        mean: None without values.
        stdev: sample standard deviation (n − 1); None with fewer than two values.
        low, high: Student's 95 % interval of the mean (n − 1 degrees of freedom); None likewise.
    """

    mean: float | None
    stdev: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and mean ± t(0.975, n − 1) · s / √n."""
    if not values:
        return Spread(None, None, None, None)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(mean, None, None, None)
    from scipy.stats import t

    deviation = statistics.stdev(values)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Spread(mean, deviation, mean - half, mean + half)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[list[int], Spread]:
    """Differences ours − theirs, seed by seed, over the seeds that both have."""
    seeds = [seed for seed in ours if seed in theirs]
    return seeds, spread([ours[seed] - theirs[seed] for seed in seeds])
