"""The host's end of the LLM service: any `LLMService` behind a gRPC port."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc

from fednano_flwr.exchange import fednano_pb2 as pb
from fednano_flwr.exchange.activity import Activity, is_progress
from fednano_flwr.exchange.answers import Answers, RefusalError, check_protocol
from fednano_flwr.exchange.fednano_pb2_grpc import LLMServicer, add_LLMServicer_to_server
from fednano_flwr.exchange.guard import Guard
from fednano_flwr.exchange.protocol import PROTOCOL_VERSION, STILL_WANTED, LLMInfo, LLMService
from fednano_flwr.exchange.tls import Identity
from fednano_flwr.exchange.tokens import TokenError, Tokens

# A client that is gone without a word, as when its machine lost power, is noticed in 40 seconds.
KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]
REFUSALS_AT_ONCE = 16


class Servicer(LLMServicer):
    """Introduces the host to clients and answers their calls, each session in a thread.

    Args:
        tokens: say which node a session is; without them it is the one that its calls name.
        activity: is told of each call that was served to a node whose token says who it is.
    """

    def __init__(
        self,
        service: LLMService,
        tokens: Tokens | None = None,
        activity: Activity | None = None,
    ) -> None:
        self._answers = Answers(service)
        self._info = service.describe()
        self._tokens = tokens
        self._activity = activity

    def Describe(  # noqa: N802
        self, request: pb.DescribeRequest, context: grpc.ServicerContext
    ) -> pb.Description:
        with _refusing(context):
            check_protocol(request.header)
        return _description(self._info)

    def Register(  # noqa: N802
        self, request: pb.RegisterRequest, context: grpc.ServicerContext
    ) -> pb.Description:
        info = self._info
        with _refusing(context):
            check_protocol(request.header)
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
        self._note(self._owner(context))
        return _description(info)

    def Session(  # noqa: N802
        self, calls: Iterator[pb.Call], context: grpc.ServicerContext
    ) -> Iterator[pb.Answer]:
        STILL_WANTED.set(context.is_active)  # for this thread, until its next session
        owner = self._owner(context)
        for call in calls:
            answer = self._answers.to(call, owner)
            if is_progress(answer):
                self._note(owner)
            yield answer

    def _note(self, owner: bytes | None) -> None:
        if self._activity is not None and owner is not None:
            self._activity.served(owner)

    def _owner(self, context: grpc.ServicerContext) -> bytes | None:
        if self._tokens is None:
            return None
        try:
            return self._tokens.owner(context.invocation_metadata())
        except TokenError as error:  # its time ended since the guard let it in
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise  # never reached: `abort` raises


@contextmanager
def serve(
    service: LLMService,
    bind: str = "127.0.0.1",
    port: int = 0,
    max_clients: int = 1024,
    tokens: Tokens | None = None,
    identity: Identity | None = None,
    activity: Activity | None = None,
) -> Iterator[str]:
    """Answer clients while the block runs; yields the address, `host:port`.

    Args:
        service: asked from several threads at once.
        max_clients: sessions at once, each with a thread; more clients are told to come again.
        tokens: callers need one of these; without, whoever reaches the port is answered.
        identity: the service speaks TLS only, with this key and certificate.
        activity: is told when each node was served; needs `tokens`, which say who a node is.

    Raises:
        OSError: the port is taken.
    """
    threads = max_clients + REFUSALS_AT_ONCE
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="llm-rpc"),
        maximum_concurrent_rpcs=threads,
        interceptors=[] if tokens is None else [Guard(tokens)],
        options=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", _largest_message(service.describe())),
            ("grpc.so_reuseport", 0),
            *KEEPALIVE,
        ],
    )
    add_LLMServicer_to_server(Servicer(service, tokens, activity), server)
    host = f"[{bind}]" if ":" in bind else bind
    try:
        if identity is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            pair = (identity.key, identity.certificate)
            bound = server.add_secure_port(f"{host}:{port}", grpc.ssl_server_credentials([pair]))
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
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn a refusal into a gRPC status that carries its text."""
    try:
        yield
    except RefusalError as refusal:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))


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
