"""As the other tests here, on at least 100,000 inputs, other ones each time.

    FEDNANO_FUZZ_REPORT=report.json python -m pytest -m slow -s tests/fuzz/test_many.py

FEDNANO_FUZZ_SEED repeats a run, FEDNANO_FUZZ_SCALE makes it longer.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import pytest

from fednano_flwr.models.llm_half import LLMHalf
from tests.fuzz import answers, files, replies, test_calls, test_wire
from tests.fuzz.messages import MUTANTS
from tests.fuzz.running import Tally, no_leak, scale
from tests.fuzz.service import Attacked, stub

AT_LEAST = 100_000
DRAWS = {"spoiled": 12_000, "absurd": 6_000, "cut and flipped": 4_200}
ON_THE_LLM = 20
"""One in so many of these goes to a real language model instead of the stub."""


@pytest.mark.slow
def test_a_hundred_thousand_inputs_end_as_documented_and_leave_nothing_behind(
    llm_half: LLMHalf, folders: dict[str, files.Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    start = int(os.environ.get("FEDNANO_FUZZ_SEED", secrets.randbits(32)))
    tally, began = Tally(), time.perf_counter()

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", flush=True)

    say(f"FEDNANO_FUZZ_SEED={start}")
    try:
        with no_leak():
            for half, part in ((stub(), 1.0), (llm_half, 1 / ON_THE_LLM)):
                attacked = Attacked(half)
                for how, count in DRAWS.items():
                    test_calls.attack(attacked, tally, how, int(scale() * part * count), start)
                attacked.check_unharmed()
            test_wire.attack(tally, int(scale() * 3_000), start)
            replies.attack(tally, int(scale() * 6_000), start)
            answers.attack(tally, int(scale() * 4_000), start)
            files.attack(tally, folders, int(scale() * 120), start)
    finally:
        say(tally.table())
        if report := os.environ.get("FEDNANO_FUZZ_REPORT"):
            seconds = round(time.perf_counter() - began)
            cpu = round(time.process_time())
            tally.write(Path(report), seed=start, seconds=seconds, cpu_seconds=cpu)
    assert tally.inputs >= min(1.0, scale()) * AT_LEAST
    assert DRAWS["cut and flipped"] * MUTANTS > AT_LEAST / 2
