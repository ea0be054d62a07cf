"""How a comparison ends, with runs that nobody does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fednano_flwr.compare import command
from fednano_flwr.compare.plan import Run
from fednano_flwr.compare.pool import OnEnd
from fednano_flwr.compare.worker import Outcome
from tests.compare.made_up import a_plan, write_run


def test_a_run_that_lacks_a_score_or_fails_is_said_to_have_failed_for_all_that_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "again.toml").write_text('strategy.name = "fedavg"\nedge.feature-dir = "f"')
    plan = a_plan(tmp_path, ["fedavg"], seeds="0..2", others=["again"])

    def run_all(runs: Sequence[Run], workers: int, out: Path, on_end: OnEnd) -> None:
        for run in runs:
            write_run(run)
            if run.seed == 1:
                file = run.folder / "metrics.jsonl"
                file.write_text(file.read_text().replace('"1": ', '"7": '))
            on_end(run, Outcome(1.0, "OSError: no room" if run.seed == 2 else None))

    monkeypatch.setattr(command, "run_all", run_all)
    said: list[str] = []
    failed = command._run(plan, plan.distinct, 1, {}, said.append)
    lacks = "round 0 lacks the score of client 1"
    assert {str(run): reason for run, reason in failed.items()} == {
        "fedavg  seed 1": lacks,
        "again  seed 1": lacks,
        "fedavg  seed 2": "OSError: no room",
        "again  seed 2": "OSError: no room",
    }
    assert f"[2/3] fedavg  seed 1: failed: {lacks}" in said[1]
