"""Means and intervals, against numbers worked out by hand."""

import math

import pytest

from fednano_flwr.analysis.statistics import Spread, paired, spread


def test_the_interval_of_three_values_is_students_with_two_degrees_of_freedom() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.stdev, str(found)) == (2.0, 1.0, "2.0 ± 1.0")
    half = 4.302653 / math.sqrt(3)  # t(0.975, 2) from a table; s = 1
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_one_value_has_a_mean_and_no_interval_and_none_has_nothing() -> None:
    assert spread([7.5]) == Spread(7.5) and str(spread([7.5])) == "7.5"
    assert spread([]) == Spread() and str(Spread()) == "–"


def test_only_seeds_that_both_have_are_paired() -> None:
    ours = {0: 81.0, 1: 92.0, 2: 73.0, 5: 0.0}
    theirs = {2: 70.0, 1: 90.0, 0: 80.0, 4: 100.0}
    assert paired(ours, theirs) == {0: 1.0, 1: 2.0, 2: 3.0}
    assert paired(ours, {9: 1.0}) == {}
