"""What one node may take of the LLM service, and when it was last served."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from fednano_flwr.exchange.errors import (
    FeaturesMissingError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
)
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire import methods
from fednano_flwr.exchange.wire.connection import METHOD, Session
from fednano_flwr.exchange.wire.nodes import BURST_SECONDS, Activity, Meter, NodeLimits
from tests.batches import answered_at_the_end as batch
from tests.exchange.conftest import NODE, OTHER, Remote
from tests.exchange.stand_in import StandIn

Served = Callable[..., Remote]
RATE = r"llm\.node-requests-per-second"


def test_a_silent_node_may_make_a_burst_and_then_only_its_rate() -> None:
    now = 100.0
    meter = Meter(NodeLimits(requests_per_second=2), clock=lambda: now)

    def makes(count: int) -> None:
        for _ in range(count):
            meter.request(b"a")
        for _ in range(100):  # refused requests do not count
            with pytest.raises(HostBusyError, match=rf"2 requests a second.*{RATE}"):
                meter.request(b"a")

    makes(int(2 * BURST_SECONDS))
    meter.request(b"b")  # another node's are its own
    now += 1
    makes(2)
    now += 1000
    makes(int(2 * BURST_SECONDS))


def test_without_limits_nothing_is_refused_and_nothing_is_kept() -> None:
    meter = Meter(NodeLimits(sessions=0))
    for number in range(1000):
        owner = str(number).encode()
        meter.request(owner)
        with meter.session(owner):
            pass
    assert not meter._buckets and not meter._sessions


def test_a_node_beyond_its_rate_is_busy_and_another_is_served(
    served: Served, service: StandIn
) -> None:
    remote = served(limits=NodeLimits(0.4))  # two at once, then one in 2.5 seconds
    greedy, other = remote(), remote(OTHER)
    greedy.describe()
    greedy.step(*batch(0))
    with pytest.raises(HostUnreachableError, match=f"busy.*{RATE}"):
        greedy.step(*batch(0))
    assert other.step(*batch(0))[0] == 0.5
    assert service.owners == [b"5/7", b"5/8"]


def test_a_client_that_met_the_rate_goes_on_when_there_is_room_again(served: Served) -> None:
    greedy = served(limits=NodeLimits(4))(retry=30)
    for _ in range(int(4 * BURST_SECONDS) + 2):
        greedy.step(*batch(0))
    assert greedy.traffic.retries > 0


def test_a_node_with_too_many_sessions_is_told_so_and_another_gets_its_own(served: Served) -> None:
    remote = served(limits=NodeLimits(sessions=2))
    greedy = remote()
    caller = greedy.caller
    call = pb.Call(describe=pb.DescribeRequest(header=caller.header())).SerializeToString()
    with grpc.insecure_channel(greedy.address) as channel:
        held = [Session(channel, caller.metadata()) for _ in range(2)]
        for session in held:
            session.ask(call, 5)
        with pytest.raises(grpc.RpcError) as refusal:
            list(channel.stream_stream(METHOD)(iter([call]), metadata=caller.metadata()))
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(HostUnreachableError, match="2 sessions open"):
            greedy.step(*batch(0))
        remote(OTHER).step(*batch(0))
        for session in held:
            session.close()
    remote(retry=10).step(*batch(0))


def test_a_message_beyond_its_size_is_refused_with_the_key(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "largest_message", lambda info: 1000)
    greedy = served()(retry=30)
    with pytest.raises(HostRefusedError, match=r"llm\.max-tokens"):
        greedy.step(*batch(0))
    assert greedy.traffic.retries == 0


def test_each_call_that_is_served_is_noted_at_its_time(served: Served) -> None:
    times = iter([10.0, 20.0, 35.0])
    activity = Activity(lambda: next(times))
    client = served(activity=activity)()
    assert activity.last_seen(b"5/7") is None
    client.register("mine", "f", 48)
    assert activity.last_seen(b"5/7") == 10.0
    client.step(*batch(0))
    client.step(*batch(0))
    assert activity.last_seen(b"5/7") == 35.0 and activity.last_seen(b"5/8") is None
    assert activity.steps() == 2  # an introduction is none


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
    served: Served, service: StandIn, error: Exception, raised: type[Exception]
) -> None:
    service.error, activity = error, Activity()
    client = served(activity=activity)(NODE, retry=0.05)
    with pytest.raises(raised):
        client.step(*batch(0))
    with pytest.raises(HostRefusedError):
        client.register("another", "g", 48)
    assert activity.last_seen(b"5/7") is None and activity.steps() == 0
