"""The host's end of the LLM service: any `LLMService` behind a gRPC port.

There is one method, a stream of calls and answers. Messages come and go as bytes: one that cannot
be parsed is refused like any other bad call.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import grpc

from fednano_flwr.config import is_loopback
from fednano_flwr.exchange.errors import HostBusyError
from fednano_flwr.exchange.protocol import STILL_WANTED, LLMService
from fednano_flwr.exchange.wire import methods
from fednano_flwr.exchange.wire.auth import Access, Admission, TokenError
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.exchange.wire.metrics import (
    NO_CALL,
    NO_METRICS,
    SESSION,
    Harmless,
    ServiceMetrics,
)
from fednano_flwr.exchange.wire.nodes import Activity, Meter, NodeLimits

if TYPE_CHECKING:  # it needs cryptography, which a service without TLS does not
    from fednano_flwr.exchange.wire.tls import Identity

# A client that is gone without a word, as when its machine lost power, is noticed in 40 seconds.
KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]
REFUSALS_AT_ONCE = 16
STREAMS = 2
"""Of a client: its calls, and what it sends ahead."""


class Servicer:
    """Answers the calls of each session in a thread.

    Args:
        tokens: say which node a session is; without them it is the one that its calls name.
        meter: counts what each of these nodes takes.
        metrics: of streams and bytes.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        tokens: Access | None,
        meter: Meter,
        metrics: ServiceMetrics,
    ) -> None:
        self._dispatcher = dispatcher
        self._tokens, self._meter, self._metrics = tokens, meter, metrics

    def session(self, calls: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answers calls one by one, each only while the token is good; else it is not parsed."""
        STILL_WANTED.set(context.is_active)  # for this thread, until its next session
        owner = self._admit(context).owner
        try:
            with ExitStack() as stack:
                if owner is not None:
                    stack.enter_context(self._meter.session(owner))
                stack.enter_context(self._metrics.stream())
                for call in calls:
                    admission = self._admit(context)
                    reply = self._dispatcher.answer(call, *admission).SerializeToString()
                    self._metrics.transferred(len(call), len(reply))
                    yield reply
        except HostBusyError as error:
            self._metrics.answered(SESSION, error)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

    def _admit(self, context: grpc.ServicerContext) -> Admission:
        if self._tokens is None:
            return Admission()
        try:
            return self._tokens.admit(context.invocation_metadata())
        except TokenError as error:
            self._metrics.answered(NO_CALL, error)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise  # never reached: `abort` raises


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
    metrics: ServiceMetrics = NO_METRICS,
) -> Iterator[str]:
    """Answer clients while the block runs; yields the address, `host:port`.

    Args:
        service: called from several threads at once.
        bind: an address of this machine; one that others can reach needs `tokens` and `identity`.
        max_clients: clients at once; more are told to come again.
        tokens: callers need one of these; without, whoever reaches the port is answered.
        identity: the service speaks TLS only, with this key and certificate.
        limits: of each node; they need `tokens`, which tell nodes apart.
        activity: notes when each node was served; needs `tokens`, which say who a node is.
        metrics: of the service.

    Raises:
        ValueError: others could reach the service, read along, or use it without a token.
        OSError: the port is taken.
    """
    if not is_loopback(bind) and (tokens is None or identity is None):
        raise ValueError(
            f"bind = {bind!r}: an address that other machines can reach needs tokens (who may "
            "call) and identity (TLS); without, take 127.0.0.1"
        )
    metrics, meter = Harmless(metrics), Meter(limits)
    threads = STREAMS * max_clients + REFUSALS_AT_ONCE  # a stream has one to itself
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="llm-rpc"),
        maximum_concurrent_rpcs=threads,
        options=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", methods.largest_message(service.describe())),
            ("grpc.so_reuseport", 0),
            *KEEPALIVE,
        ],
    )
    servicer = Servicer(Dispatcher(service, meter, activity, metrics), tokens, meter, metrics)
    handler = grpc.stream_stream_rpc_method_handler(servicer.session)
    handlers = grpc.method_handlers_generic_handler("fednano.v1.LLM", {"Session": handler})
    server.add_generic_rpc_handlers((handlers,))
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
