"""The host's end of the LLM service: any `LLMService` behind a gRPC port."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError

from fednano_flwr.config import is_loopback
from fednano_flwr.exchange.protocol import (
    PROTOCOL_VERSION,
    STILL_WANTED,
    HostBusyError,
    LLMInfo,
    LLMService,
    RefusalError,
)
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.activity import Activity, is_progress, is_step
from fednano_flwr.exchange.wire.dispatch import Dispatcher, check_protocol
from fednano_flwr.exchange.wire.guard import Guard
from fednano_flwr.exchange.wire.limits import Meter, NodeLimits
from fednano_flwr.exchange.wire.tls import Identity
from fednano_flwr.exchange.wire.tokens import Access, TokenError
from fednano_flwr.exchange.wire.watch import NO_CALL, SESSION, UNWATCHED, Harmless, Watch
from fednano_flwr.models.fingerprint import same_checkpoint

Request = TypeVar("Request", pb.DescribeRequest, pb.RegisterRequest)

# A client that is gone without a word, as when its machine lost power, is noticed in 40 seconds.
KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]
REFUSALS_AT_ONCE = 16
STATUSES = {
    RefusalError: grpc.StatusCode.INVALID_ARGUMENT,
    HostBusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
LARGEST = 2**31 - 1
"""Bytes of any message of gRPC's."""
LONGEST_NAME = 100
"""Characters of what a client calls its model that a refusal repeats."""
NO_REVISION = "none (from a folder)"


class Servicer:
    """Introduces the host to clients and answers their calls, each session in a thread.

    Messages come and go as bytes: one that cannot be parsed is refused like any other bad call.

    Args:
        tokens: say which node a session is; without them it is the one that its calls name.
        meter: counts what each of these nodes takes.
        activity: is told of each call that was served to a node whose token says who it is.
        watch: is told of calls, streams and bytes.
    """

    def __init__(
        self,
        service: LLMService,
        tokens: Access | None = None,
        meter: Meter | None = None,
        activity: Activity | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        self._meter = meter or Meter(NodeLimits())
        self._dispatcher = Dispatcher(service, self._meter, watch)
        self._info = service.describe()
        self._tokens = tokens
        self._activity = activity
        self._watch = watch

    def Describe(  # noqa: N802
        self, message: bytes, context: grpc.ServicerContext
    ) -> bytes:
        """Says what runs here."""
        with self._refusing("describe", context):
            self._meet(context)
            check_protocol(_parsed(pb.DescribeRequest, message).header)
        return self._introduced("describe", message)

    def Register(  # noqa: N802
        self, message: bytes, context: grpc.ServicerContext
    ) -> bytes:
        """Compares what the client holds with what runs here."""
        info = self._info
        with self._refusing("register", context):
            self._meet(context)
            request = _parsed(pb.RegisterRequest, message)
            check_protocol(request.header)
            # Copies in folders may have any name; names and commits on the hub say what was meant.
            pairs = (info.hub_id, request.hub_id), (info.revision, request.revision)
            other_model = any(ours and theirs and ours != theirs for ours, theirs in pairs)
            same = request.hidden_size == info.hidden_size and same_checkpoint(
                request.fingerprint, info.fingerprint
            )
            if other_model or not same:
                raise RefusalError(
                    f"the halves do not belong together: host has {info.model} (hidden size "
                    f"{info.hidden_size}, fingerprint {info.fingerprint}, revision "
                    f"{info.revision or NO_REVISION}), client has "
                    f"{request.model[:LONGEST_NAME]} (hidden size {request.hidden_size}, "
                    f"fingerprint {request.fingerprint[:LONGEST_NAME]}, revision "
                    f"{request.revision[:LONGEST_NAME] or NO_REVISION})"
                )
        self._note(self._owner(context))
        return self._introduced("register", message)

    def Session(  # noqa: N802
        self, calls: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Answers calls one by one."""
        STILL_WANTED.set(context.is_active)  # for this thread, until its next session
        owner = self._owner(context)
        with (
            self._refusing(SESSION, context),
            self._session_of(owner),
            self._watch.stream(),
        ):
            for call in calls:
                answer = self._dispatcher.answer(call, owner)
                if is_progress(answer):
                    self._note(owner, is_step(answer))
                reply = answer.SerializeToString()
                self._watch.moved(len(call), len(reply))
                yield reply

    def _session_of(self, owner: bytes | None) -> AbstractContextManager[None]:
        return nullcontext() if owner is None else self._meter.session(owner)

    def _meet(self, context: grpc.ServicerContext) -> None:
        """Count an introduction; raises `HostBusyError` for one too many."""
        owner = self._owner(context)
        if owner is not None:
            self._meter.request(owner)

    def _introduced(self, kind: str, message: bytes) -> bytes:
        """The answer to an introduction that went well."""
        answer = _description(self._info).SerializeToString()
        self._watch.answered(kind, None)
        self._watch.moved(len(message), len(answer))
        return answer

    @contextmanager
    def _refusing(self, kind: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Turn a refusal into a gRPC status that carries its text."""
        try:
            yield
        except (RefusalError, HostBusyError) as error:
            self._watch.answered(kind, error)
            context.abort(STATUSES[type(error)], str(error))

    def _note(self, owner: bytes | None, computed: bool = False) -> None:
        if self._activity is not None and owner is not None:
            self._activity.served(owner, computed)

    def _owner(self, context: grpc.ServicerContext) -> bytes | None:
        if self._tokens is None:
            return None
        try:
            return self._tokens.owner(context.invocation_metadata())
        except TokenError as error:  # its time ended since the guard let it in
            self._watch.answered(NO_CALL, error)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise  # never reached: `abort` raises


def _handlers(servicer: Servicer) -> grpc.GenericRpcHandler:
    """The service of fednano.proto, its messages as bytes."""
    return grpc.method_handlers_generic_handler(
        "fednano.v1.LLM",
        {
            "Describe": grpc.unary_unary_rpc_method_handler(servicer.Describe),
            "Register": grpc.unary_unary_rpc_method_handler(servicer.Register),
            "Session": grpc.stream_stream_rpc_method_handler(servicer.Session),
        },
    )


@contextmanager
def serve(
    service: LLMService,
    bind: str = "127.0.0.1",
    port: int = 0,
    max_clients: int = 1024,
    tokens: Access | None = None,
    identity: Identity | None = None,
    limits: NodeLimits = NodeLimits(),  # noqa: B008 (frozen)
    activity: Activity | None = None,
    watch: Watch = UNWATCHED,
) -> Iterator[str]:
    """Answer clients while the block runs; yields the address, `host:port`.

    Args:
        service: asked from several threads at once.
        bind: an address of this machine; one that others can reach needs `tokens` and `identity`.
        max_clients: sessions at once, each with a thread; more clients are told to come again.
        tokens: callers need one of these; without, whoever reaches the port is answered.
        identity: the service speaks TLS only, with this key and certificate.
        limits: of each node; they need `tokens`, which tell nodes apart.
        activity: is told when each node was served; needs `tokens`, which say who a node is.
        watch: measures the service.

    Raises:
        ValueError: others could reach the service, read along, or use it without a token.
        OSError: the port is taken.
    """
    if not is_loopback(bind) and (tokens is None or identity is None):
        raise ValueError(
            f"bind = {bind!r}: an address that other machines can reach needs tokens (who may "
            "call) and identity (TLS); without, take 127.0.0.1"
        )
    watch = Harmless(watch)
    threads = max_clients + REFUSALS_AT_ONCE
    largest = largest_message(service.describe())
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="llm-rpc"),
        maximum_concurrent_rpcs=threads,
        interceptors=[] if tokens is None else [Guard(tokens, watch)],
        options=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", largest),
            ("grpc.so_reuseport", 0),
            *KEEPALIVE,
        ],
    )
    servicer = Servicer(service, tokens, Meter(limits), activity, watch)
    server.add_generic_rpc_handlers((_handlers(servicer),))
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


def largest_message(info: LLMInfo) -> int:
    """Bytes of the largest request: embeddings in float64 and some integers a token."""
    return min(info.max_tokens * (info.hidden_size * 8 + 64) + 65536, LARGEST)


def _parsed(kind: type[Request], message: bytes) -> Request:
    """
    Raises:
        RefusalError: the bytes are no such message.
    """
    try:
        return kind.FromString(message)
    except DecodeError:
        raise RefusalError(f"{len(message)} bytes that are no {kind.__name__}") from None


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
        revision=info.revision,
        max_message=largest_message(info),
    )
