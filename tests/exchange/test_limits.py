"""What one node may take of the LLM service, and that the others do not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import torch
from torch import Tensor

from fednano_flwr.exchange.lowrank import LowRankInputs
from fednano_flwr.exchange.protocol import (
    PROTOCOL_VERSION,
    Feature,
    FeaturesMissingError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
    LLMInfo,
)
from fednano_flwr.exchange.wire import codec, methods
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.connection import METHOD, Session
from fednano_flwr.exchange.wire.nodes import BURST_SECONDS, Meter, NodeLimits
from fednano_flwr.exchange.wire.server import serve
from tests.batches import answered_at_the_end as batch

RUN, GREEDY, OTHER = 5, 7, 8
TOKENS = sum(batch(0)[0].lengths)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Noting:
    """A service that computes nothing and notes for whom."""

    def __init__(self) -> None:
        self.owners: list[bytes] = []
        self.missing = False

    def describe(self) -> LLMInfo:
        return LLMInfo("noting", "f", "", 48, 64, "float32", 100)

    def step(self, inputs: Any, labels: Tensor, owner: bytes = b"") -> tuple[float, Tensor]:
        if self.missing:
            raise FeaturesMissingError((b"k",))
        self.owners.append(owner)
        return 0.5, (torch.zeros_like(inputs.embeds),)

    def keep_features(self, features: Any, owner: bytes = b"") -> None:
        self.owners.append(owner)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(RUN)


@pytest.fixture
def service() -> Noting:
    return Noting()


Served = Callable[..., str]


@pytest.fixture
def served(service: Any, tokens: Tokens) -> Iterator[Served]:
    """Starts a service with limits, as long as the test runs."""
    open_ones = []

    def start(**limits: float) -> str:
        context = serve(service, tokens=tokens, limits=NodeLimits(**limits))  # type: ignore[arg-type]
        open_ones.append(context)
        return context.__enter__()

    yield start
    for context in open_ones:
        context.__exit__(None, None, None)


def remote(address: str, token: Callable[[int], str], node: int, **how: Any) -> RemoteLLM:
    caller = Caller(RUN, node, 1, "train", token(node))
    return RemoteLLM(address, caller, "float32", **{"retry_seconds": 0.3, **how})


def test_a_silent_node_may_make_a_burst_and_then_only_its_rate() -> None:
    clock = Clock()
    meter = Meter(NodeLimits(requests_per_second=2), clock=clock)
    burst = int(2 * BURST_SECONDS)
    for _ in range(burst):
        meter.request(b"a")
    with pytest.raises(HostBusyError, match=r"2 requests a second.*llm\.node-requests-per-second"):
        meter.request(b"a")
    meter.request(b"b")  # another node's are its own
    clock.now += 1
    meter.request(b"a")
    meter.request(b"a")
    with pytest.raises(HostBusyError):
        meter.request(b"a")
    clock.now += 1000
    for _ in range(burst):
        meter.request(b"a")
    with pytest.raises(HostBusyError):
        meter.request(b"a")


def test_a_refused_request_does_not_count() -> None:
    clock = Clock()
    meter = Meter(NodeLimits(requests_per_second=1), clock=clock)
    for _ in range(int(BURST_SECONDS)):
        meter.request(b"a")
    for _ in range(100):
        with pytest.raises(HostBusyError):
            meter.request(b"a")
    clock.now += 1
    meter.request(b"a")


def test_without_limits_nothing_is_refused_and_nothing_is_kept() -> None:
    meter = Meter(NodeLimits(sessions=0))
    for number in range(1000):
        owner = str(number).encode()
        meter.request(owner)
        with meter.session(owner):
            assert meter.sessions_of(owner) == 1
    assert not meter._buckets and not meter._sessions


def test_a_node_beyond_its_rate_is_busy_and_another_is_served(
    served: Served, tokens: Tokens, service: Noting
) -> None:
    address = served(requests_per_second=0.4)  # two at once, then one in 2.5 seconds
    with tokens.open(1, "train") as token:
        with remote(address, token, GREEDY) as greedy, remote(address, token, OTHER) as other:
            greedy.step(*batch(0))
            greedy.step(*batch(0))
            with pytest.raises(HostUnreachableError, match=r"busy.*llm\.node-requests-per-second"):
                greedy.step(*batch(0))
            assert other.step(*batch(0))[0] == 0.5
    assert service.owners == [b"5/7", b"5/7", b"5/8"]


def test_a_client_that_met_the_rate_goes_on_when_there_is_room_again(
    served: Served, tokens: Tokens
) -> None:
    address = served(requests_per_second=4)
    with tokens.open(1, "train") as token:
        with remote(address, token, GREEDY, retry_seconds=30) as greedy:
            for _ in range(int(4 * BURST_SECONDS) + 2):
                greedy.step(*batch(0))
            assert greedy.traffic.retries > 0


def test_introductions_count_as_requests(served: Served, tokens: Tokens) -> None:
    address = served(requests_per_second=0.2)
    with tokens.open(1, "train") as token, remote(address, token, GREEDY) as greedy:
        greedy.describe()
        with pytest.raises(HostUnreachableError, match=r"llm\.node-requests-per-second") as error:
            greedy.describe()
        assert "llm.max-clients" not in str(error.value)


def test_a_node_with_too_many_sessions_is_told_so_and_another_gets_its_own(
    served: Served, tokens: Tokens, service: Noting
) -> None:
    address = served(sessions=2)
    with tokens.open(1, "train") as token, grpc.insecure_channel(address) as channel:
        caller = Caller(RUN, GREEDY, 1, "train", token(GREEDY))
        call = pb.Call(
            keep_features=pb.KeepFeaturesRequest(header=caller.header())
        ).SerializeToString()
        held = [Session(channel, caller.metadata()) for _ in range(2)]
        for session in held:
            session.ask(call, 5)
        with pytest.raises(grpc.RpcError) as refusal:
            list(channel.stream_stream(METHOD)(iter([call]), metadata=caller.metadata()))
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 sessions open" in refusal.value.details()
        with remote(address, token, GREEDY) as greedy:
            with pytest.raises(HostUnreachableError, match="2 sessions open"):
                greedy.step(*batch(0))
        with remote(address, token, OTHER) as other:
            other.step(*batch(0))
        for session in held:
            session.close()
        with remote(address, token, GREEDY, retry_seconds=10) as greedy:
            greedy.step(*batch(0))


def test_a_message_beyond_its_size_is_refused_with_the_key(
    served: Served, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "largest_message", lambda info: 1000)
    address = served()
    with tokens.open(1, "train") as token:
        with remote(address, token, GREEDY, retry_seconds=30) as greedy:
            with pytest.raises(HostRefusedError, match=r"llm\.max-tokens"):
                greedy.step(*batch(0))
            assert greedy.traffic.retries == 0


def test_features_of_more_rows_than_a_request_may_have_are_refused(
    served: Served, tokens: Tokens, service: Noting
) -> None:
    address = served()
    with tokens.open(1, "train") as token, remote(address, token, GREEDY) as greedy:
        greedy.keep_features([Feature(b"k", torch.zeros(100, 48))])
        with pytest.raises(HostRefusedError, match=r"101 rows.*llm\.max-tokens"):
            greedy.keep_features([Feature(b"k", torch.zeros(101, 48))])
        with pytest.raises(HostRefusedError, match=r"\(0, 48\)"):
            greedy.keep_features([Feature(b"k", torch.zeros(0, 48))])
    assert len(service.owners) == 1


@pytest.mark.parametrize("what", ["step", "forward", "score", "next_tokens"])
def test_more_positions_than_tokens_are_refused(
    served: Served, tokens: Tokens, service: Noting, what: str
) -> None:
    """Each position costs a row of logits: without this a small request could ask for millions."""
    address = served()
    header = pb.Header(protocol=PROTOCOL_VERSION)
    inputs = pb.Inputs(lengths=[2], embeddings=codec.encode(torch.zeros(2, 48), "float32"))
    requests = {
        "step": pb.Call(
            step=pb.StepRequest(
                header=header,
                inputs=inputs,
                label_positions=[1] * 3,
                labels=[1] * 3,
                dtype="float32",
            )
        ),
        "forward": pb.Call(
            forward=pb.ForwardRequest(header=header, inputs=inputs, positions=[1] * 3)
        ),
        "score": pb.Call(score=pb.ScoreRequest(header=header, inputs=inputs, positions=[1] * 3)),
        "next_tokens": pb.Call(
            next_tokens=pb.NextTokensRequest(header=header, inputs=inputs, positions=[1] * 3)
        ),
    }
    with tokens.open(1, "train") as token, remote(address, token, GREEDY) as greedy:
        with pytest.raises(HostRefusedError, match=r"3 numbers called .*position.* can be 2"):
            greedy._answer(requests[what])
    assert not service.owners


def test_a_request_can_name_no_more_features_than_it_has_rows_of_pictures(
    served: Served, tokens: Tokens
) -> None:
    address = served()
    none = torch.zeros(0, dtype=torch.int64)
    inputs = LowRankInputs(none, torch.ones(2, dtype=torch.bool), (b"k",) * 3, {}, {}, (2,))
    with tokens.open(1, "train") as token, remote(address, token, GREEDY) as greedy:
        with pytest.raises(HostRefusedError, match="3 features for 2 rows"):
            greedy.next_tokens(inputs, torch.tensor([1]))
