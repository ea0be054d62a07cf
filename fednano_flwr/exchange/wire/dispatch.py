"""From a call of a client to the answer: what is checked before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from fednano_flwr.exchange.protocol import (
    IGNORE,
    PROTOCOL_VERSION,
    Feature,
    FeaturesMissingError,
    GoneError,
    Gradient,
    HostBusyError,
    Inputs,
    LLMService,
    LowRankInputs,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.limits import Meter, NodeLimits
from fednano_flwr.exchange.wire.tokens import owner as owner_of
from fednano_flwr.exchange.wire.watch import NO_CALL, UNWATCHED, Watch

log = logging.getLogger(__name__)
LONGEST_KEY = 32
MOST_AXES = 3
"""Of positions: time, height and width."""
SHOWN = 16


class RefusalError(ValueError):
    """A request that will not be served; its text goes back to the client."""


class Answers:
    """Answers calls with what an `LLMService` computes, or with the reason why not.

    Args:
        meter: counts what each node takes.
        watch: is told how each call ends.
    """

    def __init__(
        self, service: LLMService, meter: Meter | None = None, watch: Watch = UNWATCHED
    ) -> None:
        self._service = service
        self._info = service.describe()
        self._meter = meter or Meter(NodeLimits())
        self._watch = watch

    def of(self, message: bytes, owner: bytes | None = None) -> pb.Answer:
        """The answer to a serialized call; never raises."""
        try:
            if owner is not None:
                self._meter.request(owner)
            call = pb.Call.FromString(message)
        except HostBusyError as busy:
            return self._ended(NO_CALL, pb.Answer(), busy)
        except DecodeError:
            refusal = RefusalError(f"{len(message)} bytes that are no call")
            return self._ended(NO_CALL, pb.Answer(), refusal)
        return self.to(call, owner)

    def to(self, call: pb.Call, owner: bytes | None = None) -> pb.Answer:
        """The answer to a call; never raises, so that one bad call ends no session.

        Args:
            owner: who asks, where that is known for sure; otherwise it is who the call says.
        """
        answer = pb.Answer()
        kind = call.WhichOneof("what")
        try:
            if kind is None:
                raise RefusalError("an empty call")
            request = getattr(call, kind)
            check_protocol(request.header)
            who = owner or owner_of(request.header.run, request.header.node)
            getattr(self, f"_{kind}")(request, getattr(answer, kind), who)
        except Exception as error:
            return self._ended(kind or NO_CALL, answer, error)
        return self._ended(kind, answer, None)

    def _ended(self, kind: str, answer: pb.Answer, error: Exception | None) -> pb.Answer:
        """The answer, which says what went wrong if something did."""
        self._watch.answered(kind, error)
        match error:
            case None:
                pass
            case FeaturesMissingError():
                answer.missing.keys.extend(error.keys)
            case GoneError():
                answer.gone = True
            case HostBusyError():
                answer.busy = str(error)
            case ValueError():
                answer.refused = str(error)
            case _:
                log.error("the LLM host failed to answer a call", exc_info=error)
                answer.refused = f"the host failed: {type(error).__name__}: {error}"
        return answer

    def _step(self, request: pb.StepRequest, reply: pb.StepReply, owner: bytes) -> None:
        with self._batch(request.inputs) as inputs:
            count = sum(inputs.lengths)
            positions = _indices(request.label_positions, count, "label position", count)
            targets = _indices(request.labels, self._info.vocabulary, "label", count)
            if not len(positions) or len(positions) != len(targets):
                raise RefusalError(f"{len(positions)} label positions and {len(targets)} labels")
            labels = torch.full((count,), IGNORE)
            labels[positions] = targets
            reply.loss, gradient = self._service.step(inputs, labels, owner)
        _fill(reply, gradient, _dtype(request.inputs))

    def _forward(self, request: pb.ForwardRequest, reply: pb.ForwardReply, owner: bytes) -> None:
        with self._batch(request.inputs) as inputs:
            positions = _positions(request.positions, inputs)
            if not len(positions):
                raise RefusalError("no positions")
            reply.graph, logits = self._service.forward(inputs, positions, owner)
        codec.fill(reply.logits, logits, codec.exact(logits))

    def _backward(self, request: pb.BackwardRequest, reply: pb.BackwardReply, owner: bytes) -> None:
        if request.dtype not in codec.NAMES:
            raise RefusalError(f"dtype {request.dtype!r} is none of {', '.join(codec.NAMES)}")
        gradient = codec.decode(request.gradient)
        found = self._service.backward(request.graph, gradient, owner)
        _fill(reply, found, request.dtype)

    def _score(self, request: pb.ScoreRequest, reply: pb.ScoreReply, owner: bytes) -> None:
        with self._batch(request.inputs) as inputs:
            positions = _positions(request.positions, inputs)
            words = self._info.vocabulary
            candidates = _indices(request.candidates, words, "candidate", words)
            logits = self._service.score(inputs, positions, candidates, owner)
        codec.fill(reply.logits, logits, "float32")

    def _next_tokens(
        self, request: pb.NextTokensRequest, reply: pb.NextTokensReply, owner: bytes
    ) -> None:
        with self._batch(request.inputs) as inputs:
            positions = _positions(request.positions, inputs)
            found = self._service.next_tokens(inputs, positions, owner)
        reply.tokens.extend(found.tolist())

    def _prefill(self, request: pb.PrefillRequest, reply: pb.GeneratedReply, owner: bytes) -> None:
        if len(request.inputs.lengths) != 1:
            raise RefusalError(f"{len(request.inputs.lengths)} samples; an answer is one's")
        with self._batch(request.inputs) as inputs:
            found = self._service.prefill(inputs, owner)
        reply.cache, reply.token = found.cache, found.token

    def _decode(self, request: pb.DecodeRequest, reply: pb.GeneratedReply, owner: bytes) -> None:
        if request.token >= self._info.vocabulary:
            raise RefusalError(f"token {request.token} is out of range")
        if len(request.position) > MOST_AXES:
            raise RefusalError(f"{len(request.position)} position ids for one token")
        for name in ("z", "embedding"):
            shape = tuple(getattr(request, name).shape)
            if request.HasField(name) and (len(shape) != 2 or shape[0] != 1):
                raise RefusalError(f"{name} of shape {shape[:3]} for one token")
        found = self._service.decode(request.cache, codec.decode_token(request), owner)
        self._watch.computed(1)
        reply.cache, reply.token = found.cache, found.token

    def _keep_features(
        self, request: pb.KeepFeaturesRequest, reply: pb.KeepFeaturesReply, owner: bytes
    ) -> None:
        for entry in request.features:
            shape, most = tuple(entry.rows.shape), self._info.max_tokens
            if len(shape) != 2 or shape[0] < 1 or shape[1] != self._info.hidden_size:
                raise RefusalError(
                    f"features of shape {shape[:3]}; must be (n, {self._info.hidden_size})"
                )
            if shape[0] > most:
                raise RefusalError(
                    f"features of {shape[0]} rows; no request holds more than {most} "
                    "(llm.max-tokens)"
                )
            _check_key(entry.key)
        kept = [Feature(entry.key, codec.decode(entry.rows)) for entry in request.features]
        self._service.keep_features(kept, owner)
        reply.SetInParent()

    @contextmanager
    def _batch(self, batch: pb.Inputs) -> Iterator[Inputs]:
        """The batch of a request, whose tokens count where the block computes something."""
        counts, size = tuple(batch.lengths), self._info.hidden_size
        count = sum(counts)
        if not batch.HasField("low_rank"):
            shape = tuple(batch.embeddings.shape)
            if len(shape) != 2 or shape[1] != size:
                raise RefusalError(f"embeddings of shape {shape[:3]}; must be (N, {size})")
            if count != shape[0]:
                raise RefusalError(
                    f"lengths {_shown(counts)} do not sum to the {shape[0]} embeddings sent"
                )
        if not counts or min(counts) < 1:
            raise RefusalError(
                f"lengths {_shown(counts)}; at least one sample of at least one token"
            )
        if count > self._info.max_tokens:
            raise RefusalError(
                f"{count} tokens in one request; the host takes {self._info.max_tokens} "
                "(llm.max-tokens): use a smaller batch-size"
            )
        if len(batch.position_ids) > MOST_AXES * count:
            raise RefusalError(f"{len(batch.position_ids)} position ids for {count} tokens")
        inputs = codec.decode_inputs(batch)
        if isinstance(inputs, LowRankInputs):
            self._check_low_rank(inputs)
        yield inputs
        self._watch.computed(count)

    def _check_low_rank(self, inputs: LowRankInputs) -> None:
        if len(inputs.token_ids) and int(inputs.token_ids.max()) >= self._info.vocabulary:
            raise RefusalError(f"token {int(inputs.token_ids.max())} is out of range")
        pictured = int(inputs.is_image.sum())
        if len(inputs.keys) > pictured:
            raise RefusalError(f"{len(inputs.keys)} features for {pictured} rows of pictures")
        for key in inputs.keys:
            _check_key(key)
        rows = {"image": pictured, "text": len(inputs.is_image) - pictured}
        for site, z in inputs.z.items():
            b = inputs.b[site]
            expected = (rows[site], self._info.hidden_size)
            if z.dim() != 2 or b.dim() != 2 or z.shape[1] != b.shape[1]:
                raise RefusalError(f"{site}: z {tuple(z.shape)} and b {tuple(b.shape)} do not fit")
            if z.dtype != b.dtype:
                raise RefusalError(f"{site}: z in {z.dtype} and b in {b.dtype}")
            if (len(z), len(b)) != expected:
                raise RefusalError(
                    f"{site}: z and b have {len(z)} and {len(b)} rows, {expected} are needed"
                )


def check_protocol(header: pb.Header) -> None:
    """Both sides must run the same version of the protocol.

    Raises:
        RefusalError: they do not.
    """
    if header.protocol != PROTOCOL_VERSION:
        raise RefusalError(
            f"host speaks protocol {PROTOCOL_VERSION}, client {header.protocol}: "
            "run the same version of fednano-flwr on both sides"
        )


def _dtype(inputs: pb.Inputs) -> str:
    """In which the reply's tensors travel: the request's."""
    if not inputs.HasField("low_rank"):
        return inputs.embeddings.dtype
    return inputs.low_rank.factors[0].z.dtype if inputs.low_rank.factors else "float32"


def _fill(reply: pb.StepReply | pb.BackwardReply, gradient: Gradient, dtype: str) -> None:
    if isinstance(gradient, Tensor):
        codec.fill(reply.gradient, gradient, dtype)
    else:
        codec.fill_factors(reply.gradients, gradient.z, gradient.b, dtype)


def _positions(values: Sequence[int], inputs: Inputs) -> Tensor:
    """Rows of a batch, no more than it has."""
    count = sum(inputs.lengths)
    return _indices(values, count, "position", count)


def _indices(values: Sequence[int], below: int, what: str, most: int) -> Tensor:
    if len(values) > most:
        raise RefusalError(f"{len(values)} numbers called {what}, where there can be {most}")
    indices = torch.tensor(list(values), dtype=torch.int64)
    if len(indices) and int(indices.max()) >= below:
        raise RefusalError(f"{what} {int(indices.max())} is out of range (0 to {below - 1})")
    return indices


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= LONGEST_KEY:
        raise RefusalError(f"a key of {len(key)} bytes; 1 to {LONGEST_KEY}")


def _shown(counts: tuple[int, ...]) -> str:
    """Lengths, as far as a refusal repeats them."""
    return str(counts) if len(counts) <= SHOWN else f"{str(counts[:SHOWN])[:-1]}, …)"
