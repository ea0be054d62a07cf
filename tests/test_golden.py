"""Eight small runs come to the values that are written down."""

from __future__ import annotations

import json

import pytest

from tests import golden


def leaves(value: object, path: str = "") -> dict[str, object]:
    """Every number of a nested value, by its path."""
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    else:
        return {path: value}
    return {k: v for name, child in children for k, v in leaves(child, f"{path}/{name}").items()}


def test_small_runs_come_to_their_golden_values() -> None:
    wanted = leaves(json.loads(golden.FILE.read_text(encoding="utf-8")))
    assert leaves(golden.compute(digest=False)) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
