"""From a call of a client to the answer: what is checked before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from fednano_flwr.exchange import codec
from fednano_flwr.exchange import fednano_pb2 as pb
from fednano_flwr.exchange.protocol import (
    IGNORE,
    PROTOCOL_VERSION,
    Feature,
    FeaturesMissingError,
    Gradient,
    GraphGoneError,
    HostBusyError,
    Inputs,
    LLMService,
    LowRankInputs,
)
from fednano_flwr.exchange.tokens import owner as owner_of

log = logging.getLogger(__name__)
LONGEST_KEY = 32


class RefusalError(ValueError):
    """A request that will not be served; its text goes back to the client."""


class Answers:
    """Answers calls with what an `LLMService` computes, or with the reason why not."""

    def __init__(self, service: LLMService) -> None:
        self._service = service
        self._info = service.describe()

    def to(self, call: pb.Call, owner: bytes | None = None) -> pb.Answer:
        """The answer to a call; never raises, so that one bad call ends no session.

        Args:
            owner: who asks, where that is known for sure; otherwise it is who the call says.
        """
        answer = pb.Answer()
        try:
            kind = call.WhichOneof("what")
            if kind is None:
                raise RefusalError("an empty call")
            request = getattr(call, kind)
            check_protocol(request.header)
            who = owner or owner_of(request.header.run, request.header.node)
            getattr(self, f"_{kind}")(request, getattr(answer, kind), who)
        except FeaturesMissingError as missing:
            answer.missing.keys.extend(missing.keys)
        except GraphGoneError:
            answer.gone = True
        except HostBusyError as busy:
            answer.busy = str(busy)
        except ValueError as refusal:
            answer.refused = str(refusal)
        except Exception as error:
            log.exception("the LLM host failed to answer a call")
            answer.refused = f"the host failed: {type(error).__name__}: {error}"
        return answer

    def _step(self, request: pb.StepRequest, reply: pb.StepReply, owner: bytes) -> None:
        inputs = self._batch(request.inputs)
        count = sum(inputs.lengths)
        positions = _indices(request.label_positions, count, "label position")
        targets = _indices(request.labels, self._info.vocabulary, "label")
        if not len(positions) or len(positions) != len(targets):
            raise RefusalError(f"{len(positions)} label positions and {len(targets)} labels")
        labels = torch.full((count,), IGNORE)
        labels[positions] = targets
        reply.loss, gradient = self._service.step(inputs, labels, owner)
        _fill(reply, gradient, _dtype(request.inputs))

    def _forward(self, request: pb.ForwardRequest, reply: pb.ForwardReply, owner: bytes) -> None:
        inputs = self._batch(request.inputs)
        positions = _indices(request.positions, sum(inputs.lengths), "position")
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
        inputs = self._batch(request.inputs)
        positions = _indices(request.positions, sum(inputs.lengths), "position")
        candidates = _indices(request.candidates, self._info.vocabulary, "candidate")
        logits = self._service.score(inputs, positions, candidates, owner)
        codec.fill(reply.logits, logits, "float32")

    def _next_tokens(
        self, request: pb.NextTokensRequest, reply: pb.NextTokensReply, owner: bytes
    ) -> None:
        inputs = self._batch(request.inputs)
        positions = _indices(request.positions, sum(inputs.lengths), "position")
        reply.tokens.extend(self._service.next_tokens(inputs, positions, owner).tolist())

    def _keep_features(
        self, request: pb.KeepFeaturesRequest, reply: pb.KeepFeaturesReply, owner: bytes
    ) -> None:
        features = []
        for entry in request.features:
            shape = tuple(entry.rows.shape)
            if len(shape) != 2 or shape[1] != self._info.hidden_size:
                raise RefusalError(
                    f"features of shape {shape}; must be (n, {self._info.hidden_size})"
                )
            if not 0 < len(entry.key) <= LONGEST_KEY:
                raise RefusalError(f"a key of {len(entry.key)} bytes; 1 to {LONGEST_KEY}")
            features.append(Feature(entry.key, codec.decode(entry.rows)))
        self._service.keep_features(features, owner)
        reply.SetInParent()

    def _batch(self, batch: pb.Inputs) -> Inputs:
        counts, size = tuple(batch.lengths), self._info.hidden_size
        if not batch.HasField("low_rank"):
            shape = tuple(batch.embeddings.shape)
            if len(shape) != 2 or shape[1] != size:
                raise RefusalError(f"embeddings of shape {shape}; must be (N, {size})")
            if sum(counts) != shape[0]:
                raise RefusalError(f"lengths {counts} do not sum to the {shape[0]} embeddings sent")
        if not counts or min(counts) < 1:
            raise RefusalError(f"lengths {counts}; at least one sample of at least one token")
        if sum(counts) > self._info.max_tokens:
            raise RefusalError(
                f"{sum(counts)} tokens in one request; the host takes {self._info.max_tokens} "
                "(llm.max-tokens): use a smaller batch-size"
            )
        inputs = codec.decode_inputs(batch)
        if isinstance(inputs, LowRankInputs):
            self._check_low_rank(inputs)
        return inputs

    def _check_low_rank(self, inputs: LowRankInputs) -> None:
        if len(inputs.token_ids) and int(inputs.token_ids.max()) >= self._info.vocabulary:
            raise RefusalError(f"token {int(inputs.token_ids.max())} is out of range")
        pictured = int(inputs.is_image.sum())
        rows = {"image": pictured, "text": len(inputs.is_image) - pictured}
        for site, z in inputs.z.items():
            b = inputs.b[site]
            expected = (rows[site], self._info.hidden_size)
            if z.dim() != 2 or b.dim() != 2 or z.shape[1] != b.shape[1]:
                raise RefusalError(f"{site}: z {tuple(z.shape)} and b {tuple(b.shape)} do not fit")
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


def _indices(values: Iterable[int], below: int, what: str) -> Tensor:
    indices = torch.tensor(list(values), dtype=torch.int64)
    if len(indices) and int(indices.max()) >= below:
        raise RefusalError(f"{what} {int(indices.max())} is out of range (0 to {below - 1})")
    return indices
