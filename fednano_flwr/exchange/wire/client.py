"""The client's end of the LLM service: an `LLMService` that asks a host over gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

from google.protobuf.message import DecodeError
from torch import Tensor

from fednano_flwr.exchange.errors import (
    CacheGoneError,
    FeaturesMissingError,
    GraphGoneError,
    HostBusyError,
    HostRefusedError,
    SessionGoneError,
)
from fednano_flwr.exchange.protocol import (
    PROTOCOL_VERSION,
    Feature,
    Gradient,
    Inputs,
    LLMInfo,
    LLMService,
)
from fednano_flwr.exchange.wire import connection
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.auth import credentials
from fednano_flwr.exchange.wire.connection import Connection, StepTraffic
from fednano_flwr.exchange.wire.methods import METHODS, as_sent, feature_entry

FEATURES_AT_ONCE = 16 * 2**20
"""Bytes of features in one message, unless it is one picture's: each has to be there in time."""
AROUND_FEATURES, AROUND_ENTRY = 256, 16
"""Bytes of a message of features beside them, and beside each."""


@dataclass(frozen=True)
class Caller:
    """Who asks: goes along with every request.

    Attributes:
        phase: what the node was asked to do, "train" or "evaluate"; of `fednano serve`, `FROZEN` or
            "".
        token: shows that it was; "" for a service that needs none.
    """

    run: int = 0
    node: int = 0
    round: int = 0
    phase: str = ""
    token: str = field(default="", repr=False)

    def header(self) -> pb.Header:
        return pb.Header(protocol=PROTOCOL_VERSION, run=self.run, node=self.node, round=self.round)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return credentials(self.run, self.node, self.round, self.phase, self.token)


@dataclass
class RemoteLLM(LLMService):
    """An LLM host at `address`, used like a local one.

    All calls go through one stream. A lost connection is retried with doubling pauses; a repeated
    step changes nothing, because all that the host keeps are frozen features. For one thread; a
    second one takes `beside`. Use it as a context manager, or call `close`.

    Args:
        address: `host:port` of the LLM service.
        caller: goes along with every request.
        dtype: in which tensors cross the wire (`codec.NAMES`); "auto" is the host's.
        timeout: seconds that one attempt may take.
        retry_seconds: see `Connection`; None for `connection.RETRY_SECONDS`.
        ca: PEM of the certificates of which one has to vouch for the service's; without, the
            connection is not encrypted.

    Raises (all calls):
        HostRefusedError: the host will not serve the request, or the caller; or it cannot show
            that it is the host.
        HostUnreachableError: no answer until `retry_seconds` were over.
    """

    address: str
    caller: Caller = field(default_factory=Caller)
    dtype: str = "auto"
    timeout: float = 120.0
    retry_seconds: float | None = None
    ca: bytes | None = None
    traffic: StepTraffic = field(default_factory=StepTraffic)

    def __post_init__(self) -> None:
        retry = connection.RETRY_SECONDS if self.retry_seconds is None else self.retry_seconds
        self._host = Connection(
            self.address, self.caller.metadata(), self.timeout, retry, self.ca, self.traffic
        )
        self._max_message = 0  # until the host has said it: one picture a message
        self._open: tuple[int, Inputs | None] = (0, None)
        self._beside: RemoteLLM | None = None

    def __enter__(self) -> RemoteLLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._host.close()
        if self._beside is not None:
            self._beside.close()

    def beside(self) -> RemoteLLM:
        """A connection of its own; its bytes count here, and not the seconds that it waits."""
        if self._beside is None:
            self._beside = replace(self, dtype=self._wire_dtype())
            self._beside._host.timed, self._beside._max_message = False, self._max_message
        return self._beside

    def describe(self) -> LLMInfo:
        """What runs there; also settles the wire's dtype where it is "auto"."""
        return self._introduced("describe")

    def register(
        self,
        model: str,
        fingerprint: str,
        hidden_size: int,
        hub_id: str = "",
        revision: str = "",
    ) -> LLMInfo:
        """Tell the host what this client holds; a mismatch raises `HostRefusedError`."""
        names = ("model", "fingerprint", "hidden_size", "hub_id", "revision")
        values = (model, fingerprint, hidden_size, hub_id, revision)
        return self._introduced("register", dict(zip(names, values, strict=True)))

    def forward(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        graph, logits = super().forward(inputs, positions, owner)
        self._open = (graph, inputs)
        return graph, logits

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        number, inputs = self._open
        if number != graph or inputs is None:
            raise GraphGoneError(f"graph {graph} is not this client's latest")
        found = super().backward(graph, gradient, owner)
        with self._understood():
            return as_sent(found, inputs)

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        """See `LLMService.keep_features`; in as many messages as it takes."""
        room = min(self._max_message, FEATURES_AT_ONCE) - AROUND_FEATURES
        dtype, together, size = self._wire_dtype(), list[pb.FeatureEntry](), 0
        for feature in features:
            entry = feature_entry(feature, dtype)
            more = entry.ByteSize() + AROUND_ENTRY
            if together and size + more > room:
                self._call("keep_features", owner, together)
                together, size = [], 0
            together.append(entry)
            size += more
        if together:
            self._call("keep_features", owner, together)

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        return self._ask(method, self._wire_dtype(), *arguments)

    def _ask(self, method: str, dtype: str, *arguments: Any) -> Any:
        """The host's result of a call, unless it computed nothing."""
        call = pb.Call()
        request = getattr(call, method)
        request.header.CopyFrom(self.caller.header())
        METHODS[method].write(request, dtype, *arguments)
        answer = self._answer(call)
        with self._understood():
            return METHODS[method].result(getattr(answer, method), *arguments)

    def _answer(self, call: pb.Call) -> pb.Answer:
        """The answer to a call, unless it is that nothing was computed."""
        method = call.WhichOneof("what")
        answer = self._host.ask(call.SerializeToString(), self._read)
        if answer.HasField("refused"):
            raise HostRefusedError(f"LLM host {self.address}: {answer.refused}")
        if answer.HasField("missing"):
            raise FeaturesMissingError(tuple(answer.missing.keys))
        if answer.HasField("session_gone"):
            raise SessionGoneError(f"the LLM host no longer has the session of `{method}`")
        if answer.HasField("gone"):
            gone = CacheGoneError if method in ("prefill", "decode") else GraphGoneError
            raise gone(f"the LLM host no longer has what `{method}` goes on from")
        if answer.WhichOneof("what") != method:
            raise self._nonsense(f"{answer.WhichOneof('what') or 'nothing'} to {method}")
        return answer

    def _read(self, received: bytes) -> pb.Answer:
        """An answer of the session.

        Raises:
            HostBusyError: the call has to be repeated.
        """
        try:
            answer = pb.Answer.FromString(received)
        except DecodeError:
            raise self._nonsense(f"{len(received)} bytes that are no answer") from None
        if answer.HasField("busy"):
            raise HostBusyError(answer.busy)
        return answer

    def _introduced(self, method: str, *arguments: Any) -> LLMInfo:
        reply: pb.Description = self._ask(method, "", *arguments)
        self._max_message = reply.max_message
        if self.dtype == "auto":
            self.dtype = reply.dtype
        return LLMInfo(**{f.name: getattr(reply, f.name) for f in fields(LLMInfo)})

    def _wire_dtype(self) -> str:
        if self.dtype == "auto":
            self.describe()
        return self.dtype

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """What cannot be read of an answer is the host's fault, and said so."""
        try:
            yield
        except (ValueError, OverflowError) as error:
            raise self._nonsense(str(error)) from error

    def _nonsense(self, what: str) -> HostRefusedError:
        return HostRefusedError(f"LLM host {self.address}: its answer cannot be used: {what}")
