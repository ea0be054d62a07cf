"""docs/upload.md against what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import upload
from fednano_flwr.adapters import pack_delta as delta
from fednano_flwr.adapters import pack_fisher as fisher

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "upload.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "upload.json").read_text(encoding="utf-8"))


def test_the_documented_errors_are_those_the_benchmark_measured() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", DOCS, re.M)
    expected = [
        (kind, *(f"{100 * each[key]:.1f}" for key in ("median", "min", "max")))
        for kind, each in RESULTS["adapters"].items()
    ] + [
        (kind, *(f"{100 * (2 ** each[key] - 1):.1f}" for key in ("mean", "p99", "max")))
        for kind, each in RESULTS["fisher"].items()
    ]
    assert rows == expected


def test_what_was_measured_is_within_the_bounds() -> None:
    for kind, bits in fisher.BITS.items():
        assert 0 < RESULTS["fisher"][kind]["max"] <= fisher.RANGE / (2 * (2**bits - 2))
        assert RESULTS["fisher"][kind]["zeros"] == 0  # as the page says
    factors = re.search(r"within ([\d.]+) % of x with 8 bits and within a factor of ([\d.]+)", DOCS)
    assert factors
    eight, four = (2 ** (fisher.RANGE / (2 * (2**bits - 2))) for bits in fisher.BITS.values())
    assert eight <= 1 + float(factors[1]) / 100 == pytest.approx(eight, abs=1e-3)
    assert four <= float(factors[2]) == pytest.approx(four, abs=1e-2)


def test_the_benchmark_packs_a_small_update_with_each_codec() -> None:
    update = upload.large_update(64, 2)
    errors = [upload.adapter_errors([update], kind)["median"] for kind in delta.BITS]
    assert 0 < 10 * errors[0] < errors[1] < 0.3
    off = [upload.fisher_errors([update], kind)["mean"] for kind in fisher.BITS]
    assert 0 < 10 * off[0] < off[1] < 0.5
    assert len(upload.timings(update, repeats=1)) == 2 * (len(delta.BITS) + len(fisher.BITS) + 1)
