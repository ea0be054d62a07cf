"""The noised mean against its formulas; the strategies that go on from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg, FedAvgM, Strategy

from fednano_flwr.config import Privacy, RunConfig
from fednano_flwr.privacy.private import Private
from fednano_flwr.rounds.federation import NodeView
from fednano_flwr.strategies.memory import remember, restore
from fednano_flwr.strategies.registry import ALL_NODES
from tests.replies import train_reply

pytest.importorskip("dp_accounting")
SHAPES = {"theta.a": (300, 100), "theta.b": (100, 200)}
COUNT = 50_000
Make = Callable[..., Private]


@pytest.fixture
def make(defaults: dict[str, Any], tmp_path: Path) -> Make:
    """A private strategy with little noise, unless told otherwise."""

    def made(dp: str, named: Strategy | None = None, **changed: Any) -> Private:
        quiet = {"noise_multiplier": 1e-6, **changed, "dp": dp}
        flat = {**defaults, **{f"privacy.{k.replace('_', '-')}": v for k, v in quiet.items()}}
        privacy: Privacy = RunConfig.parse(flat).privacy
        return Private(named or FedAvg(**ALL_NODES), privacy, tmp_path)

    return made


def arrays(value: float) -> ArrayRecord:
    """Adapters whose every number is `value`."""
    return ArrayRecord({k: Array(np.full(s, value, np.float32)) for k, s in SHAPES.items()})


def moved(found: ArrayRecord | None, start: float = 1.0) -> np.ndarray:
    assert found is not None
    return np.concatenate([v.numpy().ravel() for v in found.values()]).astype(np.float64) - start


def merge(strategy: Private, updates: Sequence[float], **metrics: Any) -> np.ndarray:
    """How far the adapters went in a round; each update is a norm, with its sign."""
    replies = [
        train_reply(arrays(1 + size / math.sqrt(COUNT)), num_examples=10**i, **metrics)
        for i, size in enumerate(updates)
    ]
    list(strategy.configure_train(1, arrays(1), ConfigRecord({}), NodeView([1, 2])))  # type: ignore[arg-type]
    return moved(strategy.aggregate_train(1, replies)[0])


@pytest.mark.parametrize("dp", ["server-fixed", "server-adaptive"])
def test_a_long_update_counts_as_the_clip_norm_over_all_tensors_together(
    make: Make, dp: str
) -> None:
    went = merge(make(dp, clip_norm=2.0), [50.0])
    assert np.linalg.norm(went) == pytest.approx(2.0, rel=1e-3)


def test_every_client_weighs_the_same_whatever_its_number_of_questions(make: Make) -> None:
    went = merge(make("server-fixed", clip_norm=9.0), [3.0, 1.0, -1.0])
    assert np.linalg.norm(went) == pytest.approx(1.0, rel=1e-3)


def test_an_update_of_zero_is_averaged_like_any_other(make: Make) -> None:
    went = merge(make("server-fixed", clip_norm=9.0), [0.0, 4.0])
    assert np.linalg.norm(went) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("dp", ["server-fixed", "client-fixed"])
def test_noise_has_the_standard_deviation_of_the_formula(make: Make, dp: str, clients: int) -> None:
    strategy = make(dp, clip_norm=0.5, noise_multiplier=3.0)
    went = merge(strategy, [0.0] * clients)
    expected = 3.0 * 0.5 / clients
    assert went.std() == pytest.approx(expected, rel=0.02)  # 6 standard errors of 50,000 numbers
    assert abs(went.mean()) < 6 * expected / math.sqrt(COUNT)
    assert strategy.notes["noise stddev"] == expected


def test_noise_of_adaptive_clipping_is_of_the_norm_that_clipped(make: Make) -> None:
    settings = {"noise_multiplier": 1.0, "count_noise": 0.6, "clip_rate": 5.0, "clip_norm": 1.0}
    strategy = make("server-adaptive", **settings)
    went = merge(strategy, [0.0] * 4)
    expected = (1.0**-2 - (2 * 0.6) ** -2) ** -0.5 / 4  # Andrew et al., NeurIPS 2021, theorem 1
    assert strategy.clip_norm != 1.0, "the norm has moved on"
    assert went.std() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("size", [30.0, 0.03])
@pytest.mark.parametrize("dp", ["server-adaptive", "client-adaptive"])
def test_an_adaptive_norm_nears_the_norm_of_the_updates(make: Make, dp: str, size: float) -> None:
    strategy = make(dp, count_noise=0.01, clip_rate=1.0)
    for _ in range(12):
        bit = {"norm_bit": int(size > strategy.clip_norm)} if dp == "client-adaptive" else {}
        replies = [train_reply(arrays(1 + size / math.sqrt(COUNT))) for _ in range(2)]
        for reply in replies:
            reply.content.metric_records["metrics"].update(bit)
        list(strategy.configure_train(1, arrays(1), ConfigRecord({}), NodeView([1])))  # type: ignore[arg-type]
        strategy.aggregate_train(1, replies)
    assert size / 1.8 < strategy.clip_norm < size * 1.8


def test_seeding_numpy_does_not_tell_the_noise(make: Make) -> None:
    went = []
    for _ in range(2):
        np.random.seed(7)
        went.append(merge(make("server-fixed", noise_multiplier=1.0), [0.0]))
    assert not np.allclose(*went)


def test_a_server_optimizer_steps_along_the_noised_mean(make: Make) -> None:
    named = FedAvgM(**ALL_NODES, server_learning_rate=0.5)
    went = merge(make("server-fixed", named, clip_norm=4.0), [50.0, 50.0])
    assert np.linalg.norm(went) == pytest.approx(2.0, rel=1e-3)


def test_clients_are_told_the_clip_norm_where_they_clip(make: Make) -> None:
    told = []
    for dp in ("client-fixed", "server-fixed"):
        task = ConfigRecord({})
        strategy = make(dp, clip_norm=2.5)
        asked: list[Message] = list(
            strategy.configure_train(1, arrays(1), task, NodeView([1, 2]))  # type: ignore[arg-type]
        )
        assert len(asked) == 2
        told.append(asked[0].content.config_records["config"].get("clipping_norm"))
    assert told == [2.5, None]


def test_a_checkpoint_has_the_clip_norm_and_what_the_named_strategy_remembers(make: Make) -> None:
    made = [make("server-adaptive", FedAvgM(**ALL_NODES, server_momentum=0.9)) for _ in range(2)]
    merge(made[0], [50.0, 50.0])
    memory = remember(made[0])
    assert set(memory.layout) == {"clip_norm", "named.current_arrays", "named.momentum_vector"}
    restore(made[1], memory)
    assert made[1].clip_norm == made[0].clip_norm != 1.0
    momenta = [strategy.named.momentum_vector for strategy in made]
    assert all(np.array_equal(a, b) for a, b in zip(*momenta, strict=True))
