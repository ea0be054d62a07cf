"""Who may use the LLM service: real gRPC in front of a service that notes who it works for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import pytest
import torch

from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.protocol import PROTOCOL_VERSION, Feature
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.auth import FixedToken, TokenError, Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.connection import METHOD
from fednano_flwr.exchange.wire.server import serve
from tests.batches import answered_at_the_end as batch
from tests.exchange.conftest import NODE, RUN
from tests.exchange.stand_in import StandIn

JUNK = b"\xff" * 1000  # where it is parsed, this is another error


@pytest.fixture
def address(service: StandIn, tokens: Tokens) -> Iterator[str]:
    with serve(service, tokens=tokens) as address:
        yield address


def caller(token: Callable[[int], str], node: int = NODE) -> Caller:
    return Caller(RUN, node, 1, "train", token(node))


def test_a_node_with_its_token_is_served_under_its_own_name(
    address: str, tokens: Tokens, service: StandIn
) -> None:
    with tokens.open(1, "train") as token, RemoteLLM(address, caller(token)) as remote:
        assert remote.describe() == service.describe()
        assert remote.register("mine", "f", 48).model == "stand-in"
        assert remote.step(*batch(0))[0] == 0.5
        remote.keep_features([Feature(b"k", torch.zeros(2, 48))])
    assert service.owners == [b"5/7", b"5/7"]


ASK: dict[str, Callable[[RemoteLLM], object]] = {
    "describe": lambda remote: remote.describe(),
    "step": lambda remote: remote.step(*batch(0)),
    "keep features": lambda remote: remote.keep_features([Feature(b"k", torch.zeros(2, 48))]),
}
BAD: dict[str, tuple[Callable[[Caller], Caller], str]] = {
    "none": (lambda good: replace(good, token=""), "no token"),
    "made up": (lambda good: replace(good, token="0" * 64), "not the one of this node"),
    "tampered": (
        lambda good: replace(good, token=good.token[:-1] + "01"[good.token[-1] == "0"]),
        "not the one of this node",
    ),
    "another node's": (lambda good: replace(good, node=8), "not the one of this node"),
    "another run's": (lambda good: replace(good, run=6), "not the one of this node"),
    "another round's": (lambda good: replace(good, round=2), "not the one of this node"),
    "another phase's": (lambda good: replace(good, phase="evaluate"), "not the one of this node"),
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("bad", BAD)
def test_every_call_with_a_bad_token_is_refused_at_once_and_reaches_nothing(
    address: str, tokens: Tokens, service: StandIn, ask: str, bad: str
) -> None:
    spoil, reason = BAD[bad]
    with tokens.open(1, "train") as token:
        # A dtype of its own, so that no call asks first what the host's is.
        with RemoteLLM(address, spoil(caller(token)), "float32", retry_seconds=30) as remote:
            with pytest.raises(HostRefusedError, match=reason) as refusal:
                ASK[ask](remote)
            assert address in str(refusal.value) and token(NODE) not in str(refusal.value)
            assert remote.traffic.retries == 0 and remote.traffic.calls == 0
    assert not service.owners


def test_the_body_of_a_refused_call_is_not_parsed(address: str, tokens: Tokens) -> None:
    with tokens.open(1, "train") as token, grpc.insecure_channel(address) as channel:
        stream = channel.stream_stream(METHOD)
        for bad in ((), (("authorization", "Bearer x"),), (("authorization", "Basic x"),)):
            with pytest.raises(grpc.RpcError) as refusal:
                list(stream(iter([JUNK]), metadata=bad, timeout=5))
            assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
        (answer,) = stream(iter([JUNK]), metadata=caller(token).metadata(), timeout=5)
        assert "no call" in pb.Answer.FromString(answer).refused


@pytest.mark.parametrize("later", [None, (1, "evaluate"), (2, "train")])
def test_a_token_is_of_no_use_once_its_round_or_phase_is_over(
    address: str, tokens: Tokens, service: StandIn, later: tuple[int, str] | None
) -> None:
    def refused(remote: RemoteLLM) -> None:
        with remote, pytest.raises(HostRefusedError, match="round 1, train; that is over"):
            remote.step(*batch(0))
        assert remote.traffic.retries == 0

    with tokens.open(1, "train") as token:
        old = caller(token)
        begun = RemoteLLM(address, old, "float32", retry_seconds=30)
        begun.step(*batch(0))
    with tokens.open(*later or (1, "none")):
        refused(begun)  # a stream that was let in ends
        refused(RemoteLLM(address, old, "float32", retry_seconds=30))
    assert len(service.owners) == 1


def test_a_node_cannot_act_for_another_by_naming_it_in_a_call(
    address: str, tokens: Tokens, service: StandIn
) -> None:
    header = pb.Header(protocol=PROTOCOL_VERSION, run=RUN, node=8)
    call = pb.Call(keep_features=pb.KeepFeaturesRequest(header=header)).SerializeToString()
    with tokens.open(1, "train") as token, grpc.insecure_channel(address) as channel:
        metadata = caller(token).metadata()
        answers = list(channel.stream_stream(METHOD)(iter([call]), metadata=metadata, timeout=5))
    assert pb.Answer.FromString(answers[0]).HasField("keep_features")
    assert service.owners == [b"5/7"]


def test_without_tokens_a_service_answers_whoever_calls_by_the_name_it_gives(
    service: StandIn,
) -> None:
    with serve(service) as address, RemoteLLM(address, Caller(RUN, 8)) as remote:
        remote.step(*batch(0))
    assert service.owners == [b"5/8"]


def test_tokens_differ_by_node_round_phase_and_run_and_from_process_to_process() -> None:
    made = set()
    for tokens in (Tokens(RUN), Tokens(RUN), Tokens(RUN + 1)):
        for when in ((1, "train"), (1, "evaluate"), (2, "train")):
            with tokens.open(*when) as token:
                made |= {token(7), token(8)}
    assert len(made) == 18 and {len(token) for token in made} == {64}
    here, there = Tokens(RUN), Tokens(RUN)
    with here.open(1, "train") as token, there.open(1, "train"):
        assert here.admit(caller(token).metadata()).owner == b"5/7"
        with pytest.raises(TokenError):
            there.admit(caller(token).metadata())


def test_a_fixed_token_lets_in_whoever_has_it_as_one_node(service: StandIn) -> None:
    with serve(service, tokens=FixedToken("the-token-of-a-file")) as address:
        for node in (7, 8):
            good = Caller(RUN, node, token="the-token-of-a-file")
            with RemoteLLM(address, good, "float32") as remote:
                remote.step(*batch(0))
        for bad in ("", "the-token-of-another"):
            with RemoteLLM(address, Caller(token=bad), "float32") as remote:
                with pytest.raises(HostRefusedError, match="--token-file"):
                    remote.step(*batch(0))
    assert len(service.owners) == 2 and len(set(service.owners)) == 1


def test_no_log_line_and_no_text_of_a_caller_holds_a_token(
    address: str, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), tokens.open(1, "train") as token:
        with RemoteLLM(address, caller(token)) as remote:
            remote.step(*batch(0))
            assert token(NODE) not in repr(remote) + repr(caller(token))
        with RemoteLLM(address, replace(caller(token, 8), node=NODE), "float32") as remote:
            with pytest.raises(HostRefusedError):
                remote.step(*batch(0))
        assert token(NODE) not in caplog.text and token(8) not in caplog.text
