"""docs/privacy.md against what is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fednano_flwr.privacy.budget import epsilon_of
from fednano_flwr.privacy.checks import REASONS, SERVER_STEPS, UNIFORM
from fednano_flwr.strategies.registry import FLOWER

TEXT = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")


def test_the_table_of_budgets_is_what_the_accountant_says() -> None:
    pytest.importorskip("dp_accounting")
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 4
    for multiplier, *shown in rows:
        spent = [epsilon_of(rounds, float(multiplier), 1e-5) for rounds in (1, 5, 50)]
        assert shown == [f"{epsilon:.2f}" for epsilon in spent]


def test_every_strategy_is_on_one_side_of_what_is_refused() -> None:
    refused, _, accepted = TEXT.partition("### What is refused")[2].partition("\nAccepted: ")
    accepted = accepted.partition("\n")[0]
    assert set(re.findall(r"`([\w-]+)`", accepted.partition(". ")[0])) == {*UNIFORM, *SERVER_STEPS}
    for name in {*REASONS, *FLOWER} - {*SERVER_STEPS}:
        assert f"`{name}`" in refused, name
