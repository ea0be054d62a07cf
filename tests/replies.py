"""Replies as a client sends them, to be changed."""

from __future__ import annotations

import json
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fednano_flwr.rounds.replies import COST


def train_reply(arrays: ArrayRecord, **changed: Any) -> Message:
    """A train reply; `changed` are metrics, with `_` for a dash."""
    return _reply(RecordDict({"arrays": arrays}), {"num-examples": 5, "train-loss": 0.5}, changed)


def evaluate_reply(tally: object = None, **changed: Any) -> Message:
    """An evaluate reply of a score of 1.5 in 3 questions; `changed` are metrics."""
    counted = {"all": [1.5, 3], "text only": [1.5, 3]} if tally is None else tally
    notes = {"skipped": "{}", "unreadable": '{"no picture": ["7"]}', "tally": json.dumps(counted)}
    content = RecordDict({"notes": ConfigRecord({**notes})})
    own = {"num-examples": 3, "score": 1.5, "test-loss": 4.0, "test-tokens": 8}
    own["train-examples"], own["cut-examples"] = 7, 0
    return _reply(content, own, changed)


def _reply(content: RecordDict, own: dict[str, Any], changed: dict[str, Any]) -> Message:
    cost = {key: kind(1) for key, kind in COST.items()}
    renamed = {key.replace("_", "-"): value for key, value in changed.items()}
    content["metrics"] = MetricRecord({**cost, **own, **renamed})
    # Flower's messages belong to a run.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return Message(content, dst_node_id=1, message_type="train")
