"""Which share of LoRA's gain NanoAdapters get, with an interval by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS, LEVEL = 10_000, 0.95
NO_GAIN = "LoRA's own gain is not above 0"

Values = NDArray[np.float64]


class Scores(NamedTuple):
    """One seed's test questions as three models answer them: (n,) each, larger is better."""

    frozen: Values
    adapters: Values
    lora: Values


def share_of_gain(seeds: Sequence[Scores], draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """(adapters − frozen) / (lora − frozen), of means over seeds of means over questions.

    `low` to `high` is the 95 % interval of percentiles over resamples: seeds are drawn with
    replacement, and of each drawn seed its questions, the same ones for all three models. A
    resample without a gain of LoRA counts as −∞ for `low` and as ∞ for `high`.

    Returns:
        `mean`, `low`, `high`, and a `reason` where any of them is None.
    """
    ours, lora = _gains(np.array([[np.mean(values) for values in one] for one in seeds]).mean(0))
    if lora <= 0:
        return {"mean": None, "low": None, "high": None, "reason": NO_GAIN}
    drawn_ours, drawn_lora = _gains(_resampled(seeds, draws, np.random.default_rng(seed)))
    positive = drawn_lora > 0
    ratio = np.divide(drawn_ours, drawn_lora, where=positive, out=np.zeros_like(drawn_ours))
    tail = (1 - LEVEL) / 2
    low = np.quantile(np.where(positive, ratio, -np.inf), tail, method="inverted_cdf")
    high = np.quantile(np.where(positive, ratio, np.inf), 1 - tail, method="inverted_cdf")
    found = {"mean": float(ours / lora), "low": float(low), "high": float(high)}
    if not np.isfinite([low, high]).all():
        why = f"{NO_GAIN} in {1 - positive.mean():.1%} of the resamples, so there is no interval"
        return {**found, "low": None, "high": None, "reason": why}
    return found


def _gains(means: Values) -> tuple[Values, Values]:
    """Gains of adapters and of LoRA over the frozen model.

    Args:
        means: (…, 3) as in `Scores`.
    """
    return means[..., 1] - means[..., 0], means[..., 2] - means[..., 0]


def _resampled(seeds: Sequence[Scores], draws: int, rng: np.random.Generator) -> Values:
    """(draws, 3) means over resampled seeds of means over resampled questions."""
    total = np.zeros((draws, 3))
    for _ in seeds:
        chosen = rng.integers(len(seeds), size=draws)
        for place, one in enumerate(seeds):
            values, mine = np.stack(one, axis=1), chosen == place
            questions = rng.integers(len(values), size=(int(mine.sum()), len(values)))
            total[mine] += values[questions].mean(1)
    return total / len(seeds)
