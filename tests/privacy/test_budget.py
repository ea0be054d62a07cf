"""The ε that is printed, against what the Gaussian mechanism is known to spend."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fednano_flwr.privacy.budget import Budget, epsilon_of

pytest.importorskip("dp_accounting")
DELTA = 1e-5


def exact_epsilon(releases: int, noise_multiplier: float) -> float:
    """Of the Gaussian mechanism, composed: the tight (ε, δ) curve (Balle & Wang, ICML 2018)."""
    mu = math.sqrt(releases) / noise_multiplier

    def off(epsilon: float) -> float:
        low, high = norm.cdf(mu / 2 - epsilon / mu), norm.logcdf(-mu / 2 - epsilon / mu)
        return float(low - math.exp(epsilon + high) - DELTA)

    return float(brentq(off, 0, 1000))


def simple_epsilon(releases: int, noise_multiplier: float) -> float:
    """Rényi accounting with the first published conversion (Mironov, CSF 2017), at its best α."""
    rho = releases / (2 * noise_multiplier**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / DELTA))


@pytest.mark.parametrize("noise_multiplier", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("releases", [1, 5, 50])
def test_epsilon_is_a_bound_and_a_close_one(releases: int, noise_multiplier: float) -> None:
    epsilon, exact = (f(releases, noise_multiplier) for f in (_accounted, exact_epsilon))
    assert exact <= epsilon <= min(1.15 * exact, simple_epsilon(releases, noise_multiplier))


def _accounted(releases: int, noise_multiplier: float) -> float:
    return epsilon_of(releases, noise_multiplier, DELTA)


def test_every_release_costs_and_a_new_process_goes_on_counting(tmp_path: Path) -> None:
    file = tmp_path / "privacy.jsonl"
    budget = Budget(1.0, DELTA, file)
    spent = [budget.epsilon]
    for server_round in (1, 2):
        budget.spend({"round": server_round})
        spent.append(budget.epsilon)
    assert spent[0] == 0 and spent[0] < spent[1] < spent[2]
    again = Budget(1.0, DELTA, file)
    assert (again.releases, again.epsilon) == (2, budget.epsilon)


def test_a_release_whose_line_was_cut_off_counts(tmp_path: Path) -> None:
    file = tmp_path / "privacy.jsonl"
    file.write_text('{"round": 1}\n{"rou')
    budget = Budget(1.0, DELTA, file)
    assert budget.releases == 2
    budget.spend({"round": 2})
    assert Budget(1.0, DELTA, file).releases == 3
