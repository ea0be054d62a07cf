"""The client's end of the LLM service: an `LLMService` that asks a host over gRPC."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from fednano_flwr.config.proxies import open_channel, proxy_of
from fednano_flwr.exchange.generation import Generated, NewToken
from fednano_flwr.exchange.protocol import (
    IGNORE,
    PROTOCOL_VERSION,
    CacheGoneError,
    Feature,
    FeaturesMissingError,
    Gradient,
    GraphGoneError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
    Inputs,
    LLMInfo,
    LLMInputs,
    LowRankGradients,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.fednano_pb2_grpc import LLMStub
from fednano_flwr.exchange.wire.session import Session
from fednano_flwr.exchange.wire.tokens import credentials
from fednano_flwr.exchange.wire.traffic import StepTraffic

log = logging.getLogger(__name__)
Reply = TypeVar("Reply")

RETRY_SECONDS = 60.0
"""For so long a failed request is repeated."""
FEATURES_AT_ONCE = 16 * 2**20
"""Bytes of features in one message, unless it is one picture's: each has to be there in time."""
AROUND_FEATURES, AROUND_ENTRY = 256, 16
"""Bytes of a message of features beside them, and beside each."""

LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
CROWDED = grpc.StatusCode.RESOURCE_EXHAUSTED
# How gRPC says that the other side was reached and is not who it should be.
NO_TRUST = ("TSI_PROTOCOL_FAILURE", "Hostname Verification Check failed")
DISTRUSTED = (
    "the service cannot be trusted: it speaks no TLS, or its certificate (llm.tls-cert) is not "
    "one that the CA (exchange.ca-cert, or ca-cert in the node config) vouches for, is not valid "
    "today, or is for another address"
)
CLOSED_AT_ONCE = "Socket closed"
MAYBE_TLS = (
    "if the service speaks TLS, name its CA in exchange.ca-cert, or as ca-cert in the node config"
)


@dataclass(frozen=True)
class Caller:
    """Who asks: goes along with every request.

    Attributes:
        phase: what the node was asked to do, "train" or "evaluate".
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
class RemoteLLM:
    """An LLM host at `address`, used like a local one.

    All calls go through one stream. A lost connection is retried with doubling pauses; a repeated
    step changes nothing, because all that the host keeps are frozen features. For one thread. Use
    it as a context manager, or call `close`.

    Args:
        address: `host:port` of the LLM service.
        caller: goes along with every request.
        dtype: in which tensors cross the wire (`codec.NAMES`); "auto" is the host's.
        timeout: seconds that one attempt may take.
        retry_seconds: how long to go on trying, counted from the first attempt's failure, so that
            there is a second attempt however long the first one took; 0: there is none; None:
            `RETRY_SECONDS`.
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
        if proxy := proxy_of(self.address, self.ca):
            log.warning("LLM host %s is asked through the proxy of %s", self.address, proxy)
        self._connect()
        self._session: Session | None = None
        self._max_message = 0  # until the host has said it: one picture a message
        self._open: tuple[int, Inputs | None] = (0, None)

    def __enter__(self) -> RemoteLLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._end_session()
        self._channel.close()

    def describe(self) -> LLMInfo:
        """What runs there; also settles the wire's dtype where it is "auto"."""
        return self._introduced(
            self._call("Describe", pb.DescribeRequest(header=self.caller.header()))
        )

    def register(
        self,
        model: str,
        fingerprint: str,
        hidden_size: int,
        hub_id: str = "",
        revision: str = "",
    ) -> LLMInfo:
        """Tell the host what this client holds; a mismatch raises `HostRefusedError`."""
        request = pb.RegisterRequest(
            header=self.caller.header(),
            model=model,
            fingerprint=fingerprint,
            hidden_size=hidden_size,
            hub_id=hub_id,
            revision=revision,
        )
        return self._introduced(self._call("Register", request))

    def step(self, inputs: Inputs, labels: Tensor, owner: bytes = b"") -> tuple[float, Gradient]:
        call = pb.Call(step=pb.StepRequest(header=self.caller.header()))
        codec.fill_inputs(call.step.inputs, inputs, self._wire_dtype())
        positions = (labels != IGNORE).nonzero().squeeze(1)
        call.step.label_positions.extend(positions.tolist())
        call.step.labels.extend(labels[positions].tolist())
        with self._understood():
            reply = self._answer(call).step
            return reply.loss, _gradient(reply, inputs)

    def forward(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        call = pb.Call(forward=pb.ForwardRequest(header=self.caller.header()))
        codec.fill_inputs(call.forward.inputs, inputs, self._wire_dtype())
        call.forward.positions.extend(positions.tolist())
        with self._understood():
            reply = self._answer(call).forward
            logits = codec.decode(reply.logits)
            _check_shape("logits", logits, (len(positions), None))
        self._open = (reply.graph, inputs)
        return reply.graph, logits

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        number, inputs = self._open
        if number != graph or inputs is None:
            raise GraphGoneError(f"graph {graph} is not this client's latest")
        call = pb.Call(backward=pb.BackwardRequest(header=self.caller.header(), graph=graph))
        codec.fill(call.backward.gradient, gradient, codec.exact(gradient))
        call.backward.dtype = self._wire_dtype()
        with self._understood():
            return _gradient(self._answer(call).backward, inputs)

    def score(
        self, inputs: Inputs, positions: Tensor, candidates: Tensor, owner: bytes = b""
    ) -> Tensor:
        call = pb.Call(score=pb.ScoreRequest(header=self.caller.header()))
        codec.fill_inputs(call.score.inputs, inputs, self._wire_dtype())
        call.score.positions.extend(positions.tolist())
        call.score.candidates.extend(candidates.tolist())
        with self._understood():
            logits = codec.decode(self._answer(call).score.logits)
            _check_shape("logits", logits, (len(positions), len(candidates)))
        return logits

    def next_tokens(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> Tensor:
        call = pb.Call(next_tokens=pb.NextTokensRequest(header=self.caller.header()))
        codec.fill_inputs(call.next_tokens.inputs, inputs, self._wire_dtype())
        call.next_tokens.positions.extend(positions.tolist())
        with self._understood():
            tokens = torch.tensor(list(self._answer(call).next_tokens.tokens), dtype=torch.int64)
            _check_shape("tokens", tokens, (len(positions),))
        return tokens

    def prefill(self, inputs: Inputs, owner: bytes = b"") -> Generated:
        call = pb.Call(prefill=pb.PrefillRequest(header=self.caller.header()))
        codec.fill_inputs(call.prefill.inputs, inputs, self._wire_dtype())
        reply = self._answer(call).prefill
        return Generated(reply.cache, reply.token)

    def decode(self, cache: int, token: NewToken, owner: bytes = b"") -> Generated:
        call = pb.Call(decode=pb.DecodeRequest(header=self.caller.header(), cache=cache))
        codec.fill_token(call.decode, token, self._wire_dtype())
        reply = self._answer(call).decode
        return Generated(reply.cache, reply.token)

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        dtype = self._wire_dtype()
        room = min(self._max_message, FEATURES_AT_ONCE) - AROUND_FEATURES
        entries: list[pb.FeatureEntry] = []
        for feature in features:
            entry = pb.FeatureEntry(key=feature.key)
            codec.fill(entry.rows, feature.rows, dtype)
            if entries and sum(map(_size_in_list, (*entries, entry))) > room:
                self._keep(entries)
                entries = []
            entries.append(entry)
        if entries:
            self._keep(entries)

    def _keep(self, entries: Sequence[pb.FeatureEntry]) -> None:
        request = pb.KeepFeaturesRequest(header=self.caller.header(), features=entries)
        self._answer(pb.Call(keep_features=request))

    def _introduced(self, reply: pb.Description) -> LLMInfo:
        if reply.dtype not in codec.DTYPES:
            raise HostRefusedError(
                f"LLM host {self.address}: computes in {reply.dtype[:32]!r}, which is no dtype here"
            )
        self._max_message = reply.max_message
        if self.dtype == "auto":
            self.dtype = reply.dtype
        return LLMInfo(
            model=reply.model,
            fingerprint=reply.fingerprint,
            hub_id=reply.hub_id,
            hidden_size=reply.hidden_size,
            vocabulary=reply.vocabulary,
            dtype=reply.dtype,
            max_tokens=reply.max_tokens,
            parameters=reply.parameters,
            revision=reply.revision,
        )

    def _wire_dtype(self) -> str:
        if self.dtype == "auto":
            self.describe()
        return self.dtype

    def _answer(self, call: pb.Call) -> pb.Answer:
        """The answer to a call of the session, unless it is that nothing was computed."""
        serialized = call.SerializeToString()

        def ask() -> pb.Answer:
            if self._session is None:
                self._session = Session(self._channel, self.caller.metadata())
            self.traffic.bytes_up += len(serialized)
            try:
                received = self._session.ask(serialized, self.timeout)
            except grpc.RpcError:
                self._end_session()
                raise
            self.traffic.bytes_down += len(received)
            try:
                answer = pb.Answer.FromString(received)
            except DecodeError:
                raise self._nonsense(f"{len(received)} bytes that are no answer") from None
            if answer.HasField("busy"):
                raise HostBusyError(answer.busy)
            return answer

        answer = self._persistently(ask)
        if answer.HasField("refused"):
            raise HostRefusedError(f"LLM host {self.address}: {answer.refused}")
        if answer.HasField("missing"):
            raise FeaturesMissingError(tuple(answer.missing.keys))
        if answer.HasField("gone"):
            if call.HasField("decode"):
                raise CacheGoneError("the LLM host does not have this cache any more")
            raise GraphGoneError("the LLM host does not have this graph any more")
        if answer.WhichOneof("what") != call.WhichOneof("what"):
            raise self._nonsense(
                f"{answer.WhichOneof('what') or 'nothing'} to {call.WhichOneof('what')}"
            )
        return answer

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """What cannot be read of an answer is the host's fault, and said so."""
        try:
            yield
        except (ValueError, OverflowError) as error:
            raise self._nonsense(str(error)) from error

    def _nonsense(self, what: str) -> HostRefusedError:
        return HostRefusedError(f"LLM host {self.address}: its answer cannot be used: {what}")

    def _call(self, name: str, request: Any) -> pb.Description:
        """The reply to a call outside the session."""

        def ask() -> pb.Description:
            self.traffic.bytes_up += request.ByteSize()
            method = getattr(self._stub, name)
            reply = method(request, timeout=self.timeout, metadata=self.caller.metadata())
            self.traffic.bytes_down += reply.ByteSize()
            return reply

        return self._persistently(ask)

    def _persistently(self, ask: Callable[[], Reply]) -> Reply:
        """Ask until there is an answer, or until `retry_seconds` after a failure are over."""
        started = time.monotonic()
        limit = RETRY_SECONDS if self.retry_seconds is None else self.retry_seconds
        pause = 0.1
        end: float | None = None
        while True:
            try:
                reply = ask()
                break
            except grpc.RpcError as error:
                code, detail = error.code(), str(error.details())  # type: ignore[attr-defined]
                crowded = code == CROWDED and "larger than max" not in detail
                distrusted = self.ca is not None and any(sign in detail for sign in NO_TRUST)
                if code == CROWDED and not crowded:
                    detail += " (llm.max-tokens): use a smaller batch-size"
                if distrusted:
                    detail = f"{DISTRUSTED} ({detail})"
                if distrusted or (code not in LOST and not crowded):
                    raise HostRefusedError(f"LLM host {self.address}: {detail}") from error
                full = crowded and "Concurrent RPC limit" in detail
                reason = f"{code.name}: {detail}" + (" (llm.max-clients)" if full else "")
                if code == grpc.StatusCode.DEADLINE_EXCEEDED:  # the way there may be gone unnoticed
                    self.close()
                    self._connect()
                if self.ca is None and CLOSED_AT_ONCE in detail:
                    reason += f"; {MAYBE_TLS}"
                if proxy := proxy_of(self.address, self.ca):
                    reason += f"; asked through the proxy of {proxy}"
            except HostBusyError as busy:
                reason = f"busy: {busy}"
            now = time.monotonic()
            end = now + limit if end is None else end
            if now >= end:
                raise HostUnreachableError(
                    f"LLM host {self.address} did not answer for {now - started:.0f} s ({reason})"
                )
            pause = min(pause, end - now)
            log.warning("LLM host %s: %s, trying again in %.1f s", self.address, reason, pause)
            self.traffic.retries += 1
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
        self.traffic.calls += 1
        self.traffic.seconds += time.monotonic() - started
        return reply

    def _connect(self) -> None:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        # A lost host is looked for again at once, not after gRPC's own minutes of back-off.
        backoff = [
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        own = [("grpc.use_local_subchannel_pool", 1)]  # else a new channel is the old connection
        options = [*unlimited, *backoff, *own]
        self._channel = open_channel(self.address, self.ca, options)
        self._stub = LLMStub(self._channel)

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _size_in_list(entry: pb.FeatureEntry) -> int:
    """Bytes of one picture's features in a message, at most."""
    return entry.ByteSize() + AROUND_ENTRY


def _gradient(reply: pb.StepReply | pb.BackwardReply, inputs: Inputs) -> Gradient:
    """A reply's gradient, where and as the inputs were.

    Raises:
        ValueError: it is not one with respect to what was sent.
    """
    if isinstance(inputs, LLMInputs):
        gradient = codec.decode(reply.gradient)
        _check_shape("the gradient", gradient, inputs.embeds.shape)
        return gradient.to(inputs.embeds)
    z, b = codec.decode_factors(reply.gradients)
    if z.keys() != inputs.z.keys():
        raise ValueError(f"gradients of {sorted(z)}, sent were {sorted(inputs.z)}")
    for site in z:
        _check_shape(f"{site}: the gradient of z", z[site], inputs.z[site].shape)
        _check_shape(f"{site}: the gradient of b", b[site], inputs.b[site].shape)
    return LowRankGradients(
        {site: value.to(inputs.z[site]) for site, value in z.items()},
        {site: value.to(inputs.b[site]) for site, value in b.items()},
    )


def _check_shape(what: str, tensor: Tensor, expected: Sequence[int | None]) -> None:
    """Refuse another shape than expected, where None is any length."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        e not in (None, s) for s, e in zip(shape, expected, strict=True)
    ):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{what} of shape {shape}, not ({wanted})")
