"""Means over seeds, and how certain they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """A sample's mean and spread; `str` gives `61.0 ± 1.0`.

    Attributes:
        mean: None without values.
        stdev: sample standard deviation (n − 1); None with fewer than two values.
        low, high: Student's interval of the mean (n − 1 degrees of freedom), of 95 % unless another
            level is asked for; None likewise.
    """

    mean: float | None = None
    stdev: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.1f}" + ("" if self.stdev is None else f" ± {self.stdev:.1f}")


def spread(values: Sequence[float], level: float = LEVEL) -> Spread:
    """Mean, sample standard deviation and mean ± t((1 + level) / 2, n − 1) · s / √n."""
    if not values:
        return Spread()
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(mean)
    from scipy.stats import t  # takes seconds

    deviation = statistics.stdev(values)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Spread(mean, deviation, mean - half, mean + half)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Differences ours − theirs by seed, of the seeds that both have."""
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
