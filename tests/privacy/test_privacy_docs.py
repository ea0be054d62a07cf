"""docs/privacy.md against what is computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAvg

from fednano_flwr.config import RunConfig
from fednano_flwr.privacy.budget import epsilon_of
from fednano_flwr.privacy.checks import reason_against
from fednano_flwr.privacy.private import Private
from fednano_flwr.strategies.registry import ALL_NODES, FLOWER, OWN

TEXT = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")


def test_the_table_of_budgets_is_what_the_accountant_says() -> None:
    pytest.importorskip("dp_accounting")
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 4
    for multiplier, *shown in rows:
        spent = [epsilon_of(rounds, float(multiplier), 1e-5) for rounds in (1, 5, 50)]
        assert shown == [f"{epsilon:.2f}" for epsilon in spent]


def test_what_adaptive_clipping_protects_is_what_the_mechanism_covers(
    defaults: dict[str, Any], tmp_path: Path
) -> None:
    """A release is two Gaussian sums, of updates and of the count of those that were clipped."""
    pytest.importorskip("dp_accounting")
    privacy = RunConfig.parse({**defaults, "privacy.dp": "server-adaptive"}).privacy
    mean = Private(FedAvg(**ALL_NODES), privacy, tmp_path).mean
    assert isinstance(mean, DifferentialPrivacyServerSideAdaptiveClipping)

    def multiplier(clips: float, counted: float) -> float:
        """Of one Gaussian as good as both, for a client that moves the sums by so much."""
        squares = (clips / mean.noise_multiplier) ** 2 + (counted / mean.clipped_count_stddev) ** 2
        return float(squares**-0.5)

    z = privacy.noise_multiplier
    assert multiplier(1, 0.5) == pytest.approx(z)  # no change, and half a clip: the statement
    assert multiplier(2, 1) == pytest.approx(z / 2)  # other data: half the noise multiplier
    whole = multiplier(1, 1)  # no change, and not clipped
    spent = epsilon_of(1, whole, privacy.delta)
    assert f"{whole:.2f} instead of {z:g}, ε {spent:.2f}" in TEXT


def test_every_strategy_is_on_one_side_of_what_is_refused() -> None:
    refused, _, accepted = TEXT.partition("### What is refused")[2].partition("\nAccepted: ")
    accepted = accepted.partition("\n")[0]
    assert set(re.findall(r"`([\w-]+)`", accepted.partition(". ")[0])) == {
        name for name in (*OWN, *FLOWER) if not reason_against(name)
    }
    for name in filter(reason_against, (*OWN, *FLOWER)):
        assert f"`{name}`" in refused, name
