"""The host's end of the LLM service: any `LLMService` behind a gRPC port."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import torch
from torch import Tensor

from fednano_flwr.exchange import codec
from fednano_flwr.exchange import fednano_pb2 as pb
from fednano_flwr.exchange.fednano_pb2_grpc import LLMServicer, add_LLMServicer_to_server
from fednano_flwr.exchange.protocol import (
    IGNORE,
    PROTOCOL_VERSION,
    STILL_WANTED,
    Feature,
    FeaturesMissingError,
    Gradient,
    GraphGoneError,
    HostBusyError,
    Inputs,
    LLMInfo,
    LLMService,
    LowRankInputs,
)

REFUSALS_AT_ONCE = 16
LONGEST_KEY = 32


class RefusalError(ValueError):
    """A request that will not be served; its text goes back to the client."""


class Servicer(LLMServicer):
    """Checks each request, then asks the service, from as many threads as there are requests."""

    def __init__(self, service: LLMService) -> None:
        self._service = service
        self._info = service.describe()

    def Describe(  # noqa: N802
        self, request: pb.DescribeRequest, context: grpc.ServicerContext
    ) -> pb.Description:
        with _answering(context):
            _check_protocol(request.header)
        return _description(self._info)

    def Register(  # noqa: N802
        self, request: pb.RegisterRequest, context: grpc.ServicerContext
    ) -> pb.Description:
        info = self._info
        with _answering(context):
            _check_protocol(request.header)
            # Copies in folders may have any name; names on the hub say what was meant.
            other_model = info.hub_id and request.hub_id and info.hub_id != request.hub_id
            same = (request.hidden_size, request.fingerprint) == (
                info.hidden_size,
                info.fingerprint,
            )
            if other_model or not same:
                raise RefusalError(
                    f"the halves do not belong together: host has {info.model} (hidden size "
                    f"{info.hidden_size}, fingerprint {info.fingerprint}), client has "
                    f"{request.model} (hidden size {request.hidden_size}, fingerprint "
                    f"{request.fingerprint})"
                )
        return _description(info)

    def Step(self, request: pb.StepRequest, context: grpc.ServicerContext) -> pb.StepReply:  # noqa: N802
        with _answering(context):
            inputs = self._batch(request.header, request.inputs)
            count = sum(inputs.lengths)
            positions = _indices(request.label_positions, count, "label position")
            targets = _indices(request.labels, self._info.vocabulary, "label")
            if not len(positions) or len(positions) != len(targets):
                raise RefusalError(f"{len(positions)} label positions and {len(targets)} labels")
            labels = torch.full((count,), IGNORE)
            labels[positions] = targets
            try:
                loss, gradient = self._service.step(inputs, labels, _owner(request.header))
            except FeaturesMissingError as missing:
                return pb.StepReply(missing=missing.keys)
            return pb.StepReply(loss=loss, **_fields(gradient, _dtype(request.inputs)))
        raise AssertionError("unreachable")

    def Forward(  # noqa: N802
        self, request: pb.ForwardRequest, context: grpc.ServicerContext
    ) -> pb.ForwardReply:
        with _answering(context):
            inputs = self._batch(request.header, request.inputs)
            positions = _indices(request.positions, sum(inputs.lengths), "position")
            if not len(positions):
                raise RefusalError("no positions")
            try:
                graph, logits = self._service.forward(inputs, positions, _owner(request.header))
            except FeaturesMissingError as missing:
                return pb.ForwardReply(missing=missing.keys)
        return pb.ForwardReply(graph=graph, logits=codec.encode(logits, _exact(logits)))

    def Backward(  # noqa: N802
        self, request: pb.BackwardRequest, context: grpc.ServicerContext
    ) -> pb.BackwardReply:
        with _answering(context):
            _check_protocol(request.header)
            if request.dtype not in codec.NAMES:
                raise RefusalError(f"dtype {request.dtype!r} is none of {', '.join(codec.NAMES)}")
            gradient = codec.decode(request.gradient)
            try:
                found = self._service.backward(request.graph, gradient, _owner(request.header))
            except GraphGoneError:
                return pb.BackwardReply(gone=True)
            return pb.BackwardReply(**_fields(found, request.dtype))
        raise AssertionError("unreachable")

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreReply:  # noqa: N802
        with _answering(context):
            inputs, owner = self._batch(request.header, request.inputs), _owner(request.header)
            positions = _indices(request.positions, sum(inputs.lengths), "position")
            candidates = _indices(request.candidates, self._info.vocabulary, "candidate")
            try:
                logits = self._service.score(inputs, positions, candidates, owner)
            except FeaturesMissingError as missing:
                return pb.ScoreReply(missing=missing.keys)
        return pb.ScoreReply(logits=codec.encode(logits, "float32"))

    def NextTokens(  # noqa: N802
        self, request: pb.NextTokensRequest, context: grpc.ServicerContext
    ) -> pb.NextTokensReply:
        with _answering(context):
            inputs, owner = self._batch(request.header, request.inputs), _owner(request.header)
            positions = _indices(request.positions, sum(inputs.lengths), "position")
            try:
                tokens = self._service.next_tokens(inputs, positions, owner)
            except FeaturesMissingError as missing:
                return pb.NextTokensReply(missing=missing.keys)
        return pb.NextTokensReply(tokens=tokens.tolist())

    def KeepFeatures(  # noqa: N802
        self, request: pb.KeepFeaturesRequest, context: grpc.ServicerContext
    ) -> pb.KeepFeaturesReply:
        with _answering(context):
            _check_protocol(request.header)
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
            self._service.keep_features(features, _owner(request.header))
        return pb.KeepFeaturesReply()

    def _batch(self, header: pb.Header, batch: pb.Inputs) -> Inputs:
        _check_protocol(header)
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


@contextmanager
def serve(
    service: LLMService, bind: str = "127.0.0.1", port: int = 0, max_waiting: int = 256
) -> Iterator[str]:
    """Answer requests while the block runs; yields the address, `host:port`.

    Args:
        service: asked from several threads at once.
        max_waiting: requests that it may be asked at once; more are told to come again.

    Raises:
        OSError: the port is taken.
    """
    threads = max_waiting + REFUSALS_AT_ONCE
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="llm-rpc"),
        maximum_concurrent_rpcs=threads,
        options=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", _largest_message(service.describe())),
            ("grpc.so_reuseport", 0),
        ],
    )
    add_LLMServicer_to_server(Servicer(service), server)
    host = f"[{bind}]" if ":" in bind else bind
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port} (llm.bind, llm.port): {error}") from error
    server.start()
    try:
        yield f"{host}:{bound}"
    finally:
        server.stop(grace=1.0).wait()


def _largest_message(info: LLMInfo) -> int:
    """Bytes of the largest request: embeddings in float64 and some integers a token."""
    return min(info.max_tokens * (info.hidden_size * 8 + 64) + 65536, 2**31 - 1)


@contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn a refusal into a gRPC status that carries its text."""
    STILL_WANTED.set(context.is_active)  # for this thread, until its next call
    try:
        yield
    except ValueError as refusal:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
    except HostBusyError as busy:
        context.abort(grpc.StatusCode.UNAVAILABLE, str(busy))
    except futures.CancelledError:
        context.abort(grpc.StatusCode.CANCELLED, "the client does not wait any more")


def _check_protocol(header: pb.Header) -> None:
    if header.protocol != PROTOCOL_VERSION:
        raise RefusalError(
            f"host speaks protocol {PROTOCOL_VERSION}, client {header.protocol}: "
            "run the same version of fednano-flwr on both sides"
        )


def _owner(header: pb.Header) -> bytes:
    """Whose features a request names: the node's own, in this run."""
    return f"{header.run}/{header.node}".encode()


def _dtype(inputs: pb.Inputs) -> str:
    """In which the reply's tensors travel: the request's."""
    if not inputs.HasField("low_rank"):
        return inputs.embeddings.dtype
    return inputs.low_rank.factors[0].z.dtype if inputs.low_rank.factors else "float32"


def _exact(tensor: Tensor) -> str:
    """The wire's dtype that keeps a tensor as it is."""
    return str(tensor.dtype).removeprefix("torch.")


def _fields(gradient: Gradient, dtype: str) -> dict[str, Any]:
    """The fields of a reply that hold a gradient."""
    if isinstance(gradient, Tensor):
        return {"gradient": codec.encode(gradient, dtype)}
    return {"gradients": codec.encode_factors(gradient.z, gradient.b, dtype)}


def _indices(values: Iterable[int], below: int, what: str) -> Tensor:
    indices = torch.tensor(list(values), dtype=torch.int64)
    if len(indices) and int(indices.max()) >= below:
        raise RefusalError(f"{what} {int(indices.max())} is out of range (0 to {below - 1})")
    return indices


def _description(info: LLMInfo) -> pb.Description:
    return pb.Description(
        protocol=PROTOCOL_VERSION,
        model=info.model,
        fingerprint=info.fingerprint,
        hub_id=info.hub_id,
        hidden_size=info.hidden_size,
        vocabulary=info.vocabulary,
        dtype=info.dtype,
        max_tokens=info.max_tokens,
        parameters=info.parameters,
    )
