"""docs/exchange.md against what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import upload
from fednano_flwr.adapters import pack_fisher as fisher
from fednano_flwr.adapters.packing import BITS

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "exchange.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "upload.json").read_text(encoding="utf-8"))
LOG4 = RESULTS["fisher"]["log4"]


def test_the_documented_errors_are_those_the_benchmark_measured() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", DOCS, re.M)
    expected = [
        (kind, *(f"{100 * each[key]:.1f}" for key in ("median", "min", "max")))
        for kind, each in RESULTS["adapters"].items()
    ] + [("log4", *(f"{100 * (2 ** LOG4[key] - 1):.1f}" for key in ("mean", "p99", "max")))]
    assert rows == expected


def test_what_was_measured_is_within_the_bound() -> None:
    half_step = fisher.RANGE / (2 * (fisher.CODES - 1))
    assert 0 < LOG4["max"] <= half_step
    assert LOG4["zeros"] == 0  # as the page says
    factor = re.search(r"within a factor of ([\d.]+) of x", DOCS)
    assert factor and 2**half_step <= float(factor[1]) == pytest.approx(2**half_step, abs=1e-2)


def test_the_benchmark_packs_a_small_update_with_each_codec() -> None:
    update = upload.large_update(64, 2)
    errors = [upload.adapter_errors([update], kind)["median"] for kind in BITS]
    assert 0 < 10 * errors[0] < errors[1] < 0.3
    assert 0 < upload.fisher_errors([update])["mean"] < 0.5
    assert len(upload.timings(update, repeats=1)) == 2 * (len(BITS) + 1)
