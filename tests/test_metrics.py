"""A round's line of metrics.jsonl is JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import RunConfig
from fednano_flwr.rounds.federation import RoundReplies
from fednano_flwr.rounds.metrics import round_record
from fednano_flwr.runs.folder import RunFolder
from tests.replies import evaluate_reply


def test_a_note_that_is_not_finite_is_left_out() -> None:
    scored = RoundReplies(replies=[evaluate_reply()])
    notes = {"fisher scale": math.inf, "fisher a": 0.5, "residual": math.nan}
    record = round_record(1, None, scored, 1.0, notes)
    assert record["merge"] == {"fisher a": 0.5}
    json.dumps(record, allow_nan=False)


def test_a_line_that_is_no_json_is_not_written(run_config: Callable[..., dict[str, Any]]) -> None:
    config = RunConfig.parse(run_config())
    folder, theta = RunFolder(config), adapter_state(build_adapters(48, config.adapter, seed=0))
    with pytest.raises(ValueError, match="JSON"):
        folder.append({"round": 0, "accuracy": math.nan, "accuracy_per_client": {}}, theta, 48)
    assert not (folder.path / "metrics.jsonl").exists()
