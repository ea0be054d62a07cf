"""What strategies remember from round to round, and that nothing of it is missed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fednano_flwr.config import RunConfig
from fednano_flwr.rounds.federation import NodeView
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.memory import FLOWER_ATTRIBUTES, remember, restore
from fednano_flwr.strategies.registry import FLOWER, make_strategy

ARGS = {"FedAvgM": "server_momentum=0.9,server_learning_rate=0.5"}
Make = Callable[[str], Any]


@pytest.fixture
def make(defaults: dict[str, Any]) -> Make:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # messages ask for it

    def made(name: str) -> Any:
        flat = {**defaults, "strategy.name": name, "strategy.args": ARGS.get(name, "")}
        return make_strategy(RunConfig.parse(flat).strategy)

    return made


def numbers(seed: int) -> ArrayRecord:
    """Keys that are not in the order of the alphabet, as a strategy may have sent them."""
    generator = np.random.default_rng(seed)
    shapes = {"theta.b": (2, 3), "theta.a": (4,)}
    drawn = {key: generator.normal(size=shape) for key, shape in shapes.items()}
    return ArrayRecord({key: Array(value.astype(np.float32)) for key, value in drawn.items()})


def one_round(strategy: Any, number: int, sent: ArrayRecord) -> ArrayRecord:
    messages = strategy.configure_train(number, sent, ConfigRecord(), NodeView([1, 2, 3, 4, 5]))
    replies = []
    for k, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = str(k)
        metrics = MetricRecord({"num-examples": 3 + k, "partition-id": k})
        content = RecordDict({"arrays": numbers(10 * number + k), "metrics": metrics})
        replies.append(Message(content, reply_to=message))
    merged, _ = strategy.aggregate_train(number, replies)
    return merged


def plain(record: ArrayRecord) -> dict[str, Any]:
    return {key: array.numpy() for key, array in record.items()}


@pytest.mark.parametrize("name", [*FLOWER, "fedavg"])
def test_a_strategy_that_was_put_back_goes_on_as_the_one_that_was_not(
    make: Make, name: str
) -> None:
    first = make(name)
    sent = one_round(first, 1, numbers(0))
    sent = one_round(first, 2, sent)
    memory = remember(first)
    second = make(name)
    restore(second, copy.deepcopy(memory))
    expected, found = (plain(one_round(one, 3, sent)) for one in (first, second))
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert value.dtype == found[key].dtype and (value == found[key]).all(), key
    if name in FLOWER_ATTRIBUTES:  # what it remembers is of consequence
        assert any(
            (value != plain(one_round(make(name), 3, sent))[key]).any()
            for key, value in expected.items()
        )


class Counting(AdapterStrategy):
    remembers = ("momentum", "count")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.momentum: dict[str, torch.Tensor] | None = None
        self.count = 0


def test_a_strategy_of_ones_own_names_what_it_remembers(defaults: dict[str, Any]) -> None:
    config = RunConfig.parse(defaults).strategy
    first, second = Counting(config), Counting(config)
    restore(second, remember(first))
    assert second.momentum is None and second.count == 0
    first.momentum, first.count = {"b": torch.ones(2, 2), "a": torch.zeros(1)}, 7
    restore(second, remember(first))
    assert second.count == 7 and second.momentum is not None
    assert list(second.momentum) == ["b", "a"] and torch.equal(
        second.momentum["b"], torch.ones(2, 2)
    )


def test_what_cannot_be_kept_or_is_anothers_is_refused(make: Make, defaults: Any) -> None:
    strategy = Counting(RunConfig.parse(defaults).strategy)
    strategy.count = "seven"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="count is a str"):
        remember(strategy)
    with pytest.raises(ValueError, match="FedAdam remembers"):
        restore(make("FedAdam"), remember(make("FedAvgM")))
