"""What anybody may write to the service's port: bodies, tokens, streams that break off."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.auth import Tokens, credentials
from fednano_flwr.exchange.wire.connection import METHOD
from fednano_flwr.exchange.wire.methods import largest_message
from fednano_flwr.exchange.wire.nodes import NodeLimits
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from tests.fuzz.messages import HOWS, calls, good
from tests.fuzz.running import Tally
from tests.fuzz.service import MAX_TOKENS, SIZE, VOCABULARY, stub

RUN, NODE, ROUND = 1, 2, 3
BAD = ("none", "another key", "malformed", "cut", "flipped", "replayed", "another node's")
ENDS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Any other is a fault. CANCELLED is the caller's own doing."""
SECONDS = 20


class Watched(FrozenLLM):
    """Notes for whom it works."""

    def __init__(self) -> None:
        super().__init__(stub(), MAX_TOKENS, FeatureStore(2**18, most=100))
        self.owners: set[bytes] = set()

    def _ask(self, job: Any) -> Any:
        self.owners.add(job.owner)
        return super()._ask(job)

    def keep_features(self, features: Any, owner: bytes = b"") -> None:
        self.owners.add(owner)
        super().keep_features(features, owner)


class Wire:
    """A service with tokens on a port, and a channel to it."""

    def __init__(self, channel: grpc.Channel, tokens: Tokens, token: Any, old: Any) -> None:
        self.channel, self._tokens, self._token, self._old = channel, tokens, token, old
        self.stream = channel.stream_stream(METHOD)

    def good(self) -> tuple[tuple[str, str], ...]:
        return credentials(RUN, NODE, ROUND, "train", self._token(NODE))

    def bad(self, how: str, rng: random.Random) -> tuple[tuple[str, str | bytes], ...]:
        ((key, value),) = self.good()
        if how == "none":
            return ()
        if how == "another key":
            return (("x-authorization", value),)
        if how == "malformed":
            junk = "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(0, 40)))
            return ((key, rng.choice((junk, f"Bearer {junk}", "Bearer ....", "bearer " + value))),)
        if how == "cut":
            return ((key, value[: rng.randrange(len(value))]),)
        if how == "flipped":
            at = rng.randrange(len("Bearer "), len(value))
            other = rng.choice([c for c in "0123456789abcdef" if c != value[at]])
            return ((key, value[:at] + other + value[at + 1 :]),)
        if how == "replayed":
            return credentials(RUN, NODE, ROUND - 1, "train", self._old)
        return credentials(RUN, NODE + 1, ROUND, "train", self._token(NODE))

    def call(self, rng: random.Random) -> Iterator[str]:
        """How an input with a good or a bad token ends."""
        how = rng.choice(BAD) if rng.random() < 0.5 else "good"
        bodies = calls(rng, rng.choice(HOWS), SIZE, VOCABULARY)[:4]
        metadata = self.good() if how == "good" else self.bad(how, rng)
        if how == "good" and rng.random() < 0.1:
            yield self._broken_off(bodies, metadata)
            return
        code, answers = self._stream(bodies, metadata)
        assert how == "good" or not answers
        assert code != grpc.StatusCode.OK or answers == len(bodies)
        assert code in ENDS, code
        assert (code == grpc.StatusCode.UNAUTHENTICATED) == (how != "good"), (how, code)
        yield code.name

    def _stream(self, bodies: list[bytes], metadata: Any) -> tuple[grpc.StatusCode, int]:
        answers = 0
        try:
            for answer in self.stream(iter(bodies), metadata=metadata, timeout=SECONDS):
                parsed = pb.Answer.FromString(answer)
                assert "the host failed" not in parsed.refused, parsed.refused
                answers += 1
        except grpc.RpcError as error:
            return error.code(), answers  # type: ignore[attr-defined]
        return grpc.StatusCode.OK, answers

    def _broken_off(self, bodies: list[bytes], metadata: Any) -> str:
        """A stream that its caller leaves in the middle."""
        never = threading.Event()

        def more() -> Iterator[bytes]:
            yield from bodies
            never.wait(SECONDS)

        stream = self.stream(more(), metadata=metadata, timeout=SECONDS)
        next(stream)
        stream.cancel()
        never.set()
        return "broken off"


def attack(tally: Tally, examples: int) -> None:
    """`examples` draws, half with a bad token; then the service is as it was."""
    host, tokens = Watched(), Tokens(RUN)
    with tokens.open(ROUND - 1, "train") as token:
        old = token(NODE)
    limits = NodeLimits(requests_per_second=10**6, sessions=64)
    with serve(host, tokens=tokens, limits=limits, max_clients=16) as address:
        with tokens.open(ROUND, "train") as token, grpc.insecure_channel(address) as channel:
            wire = Wire(channel, tokens, token, old)
            expected = reference(wire)
            tally.run("calls over gRPC, good and bad tokens", examples, wire.call)
            code, _ = wire._stream([b"\0" * (largest_message(host.describe()) + 1)], wire.good())
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reference(wire) == expected
    assert host.owners == {b"1/2"}  # the node of the good token, whatever the calls said
    host.features.close()


def reference(wire: Wire) -> list[bytes]:
    """What a good client gets."""
    calls = [good(kind, random.Random(1), SIZE, VOCABULARY) for kind in ("describe", "step")]
    sent = iter([call.SerializeToString() for call in calls])
    found = list(wire.stream(sent, metadata=wire.good(), timeout=SECONDS))
    assert [pb.Answer.FromString(a).WhichOneof("what") for a in found] == ["describe", "step"]
    return found
