"""Calls that were served are noted for the node whose token came along; others are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.exchange.protocol import (
    FeaturesMissingError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
    LLMInfo,
)
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.nodes import Activity
from fednano_flwr.exchange.wire.server import serve
from tests.batches import answered_at_the_end as batch

RUN, NODE = 5, 7


class Failing:
    """A service that computes nothing, and raises what it is told to."""

    error: Exception | None = None

    def describe(self) -> LLMInfo:
        return LLMInfo("failing", "f", "", 48, 64, "float32", 100)

    def step(self, inputs: Any, labels: Tensor, owner: bytes = b"") -> tuple[float, Tensor]:
        if self.error is not None:
            raise self.error
        return 0.5, (torch.zeros_like(inputs.embeds),)


@contextmanager
def remote(service: Any, activity: Activity) -> Iterator[RemoteLLM]:
    tokens = Tokens(RUN)
    with serve(service, tokens=tokens, activity=activity) as address:
        with tokens.open(1, "train") as token:
            caller = Caller(RUN, NODE, 1, "train", token(NODE))
            with RemoteLLM(address, caller, "float32", retry_seconds=0.05) as llm:
                yield llm


def test_each_call_that_is_served_is_noted_at_its_time() -> None:
    times = iter([10.0, 20.0, 35.0])
    activity = Activity(lambda: next(times))
    owner = b"5/7"
    with remote(Failing(), activity) as llm:
        assert activity.last_seen(owner) is None
        llm.register("mine", "f", 48)
        assert activity.last_seen(owner) == 10.0
        llm.step(*batch(0))
        llm.step(*batch(0))
    assert activity.last_seen(owner) == 35.0
    assert activity.last_seen(b"5/8") is None
    assert activity.steps() == 2  # to be introduced is none


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("not so"), HostRefusedError),
        (HostBusyError("later"), HostUnreachableError),
        (FeaturesMissingError((b"k",)), FeaturesMissingError),
        (RuntimeError("broken"), HostRefusedError),
    ],
)
def test_a_call_for_which_nothing_was_computed_is_no_progress(
    error: Exception, raised: type[Exception]
) -> None:
    service, activity = Failing(), Activity()
    service.error = error
    with remote(service, activity) as llm:
        with pytest.raises(raised):
            llm.step(*batch(0))
        with pytest.raises(HostRefusedError):
            llm.register("another", "g", 48)
    assert activity.last_seen(b"5/7") is None and activity.steps() == 0
