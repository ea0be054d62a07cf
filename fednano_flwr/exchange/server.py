"""The host's end of the LLM service: any `LLMService` behind a gRPC port."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import TypeVar

import grpc
import torch
from torch import Tensor

from fednano_flwr.exchange import codec
from fednano_flwr.exchange import fednano_pb2 as pb
from fednano_flwr.exchange.fednano_pb2_grpc import LLMServicer, add_LLMServicer_to_server
from fednano_flwr.exchange.protocol import IGNORE, PROTOCOL_VERSION, LLMInfo, LLMInputs, LLMService

Result = TypeVar("Result")
WAITING_REQUESTS = 64


class RefusalError(ValueError):
    """A request that will not be served; its text goes back to the client."""


class Servicer(LLMServicer):
    """Checks each request, then has it computed by one worker thread, first come first served."""

    def __init__(self, service: LLMService) -> None:
        self._service = service
        self._info = service.describe()
        self._worker = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="llm")

    def close(self) -> None:
        self._worker.shutdown(cancel_futures=True)

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
            count = len(inputs.embeds)
            positions = _indices(request.label_positions, count, "label position")
            targets = _indices(request.labels, self._info.vocabulary, "label")
            if not len(positions) or len(positions) != len(targets):
                raise RefusalError(f"{len(positions)} label positions and {len(targets)} labels")
            labels = torch.full((count,), IGNORE)
            labels[positions] = targets
            loss, gradient = self._compute(lambda: self._service.step(inputs, labels))
            reply = codec.encode(gradient, request.inputs.embeddings.dtype)
        return pb.StepReply(loss=loss, gradient=reply)

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreReply:  # noqa: N802
        with _answering(context):
            inputs = self._batch(request.header, request.inputs)
            positions = _indices(request.positions, len(inputs.embeds), "position")
            candidates = _indices(request.candidates, self._info.vocabulary, "candidate")
            logits = self._compute(lambda: self._service.score(inputs, positions, candidates))
        return pb.ScoreReply(logits=codec.encode(logits, "float32"))

    def NextTokens(  # noqa: N802
        self, request: pb.NextTokensRequest, context: grpc.ServicerContext
    ) -> pb.NextTokensReply:
        with _answering(context):
            inputs = self._batch(request.header, request.inputs)
            positions = _indices(request.positions, len(inputs.embeds), "position")
            tokens = self._compute(lambda: self._service.next_tokens(inputs, positions))
        return pb.NextTokensReply(tokens=tokens.tolist())

    def _compute(self, work: Callable[[], Result]) -> Result:
        return self._worker.submit(work).result()

    def _batch(self, header: pb.Header, batch: pb.Inputs) -> LLMInputs:
        _check_protocol(header)
        counts = tuple(batch.lengths)
        shape = tuple(batch.embeddings.shape)
        if len(shape) != 2 or shape[1] != self._info.hidden_size:
            raise RefusalError(
                f"embeddings of shape {shape}; must be (N, {self._info.hidden_size})"
            )
        if not counts or min(counts) < 1 or sum(counts) != shape[0]:
            raise RefusalError(f"lengths {counts} do not sum to the {shape[0]} embeddings sent")
        if shape[0] > self._info.max_tokens:
            raise RefusalError(
                f"{shape[0]} tokens in one request; the host takes {self._info.max_tokens} "
                "(llm.max-tokens): use a smaller batch-size"
            )
        return codec.decode_inputs(batch)


@contextmanager
def serve(service: LLMService, bind: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Answer requests while the block runs; yields the address, `host:port`.

    Raises:
        OSError: the port is taken.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=WAITING_REQUESTS, thread_name_prefix="llm-rpc"),
        options=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", _largest_message(service.describe())),
            ("grpc.so_reuseport", 0),
        ],
    )
    servicer = Servicer(service)
    add_LLMServicer_to_server(servicer, server)
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
        servicer.close()


def _largest_message(info: LLMInfo) -> int:
    """Bytes of the largest request: embeddings in float64 and some integers a token."""
    return min(info.max_tokens * (info.hidden_size * 8 + 64) + 65536, 2**31 - 1)


@contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn a refusal into a gRPC status that carries its text."""
    try:
        yield
    except ValueError as refusal:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))


def _check_protocol(header: pb.Header) -> None:
    if header.protocol != PROTOCOL_VERSION:
        raise RefusalError(
            f"host speaks protocol {PROTOCOL_VERSION}, client {header.protocol}: "
            "run the same version of fednano-flwr on both sides"
        )


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
    )
