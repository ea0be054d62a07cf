"""What stands before the LLM service: a call without a good token ends here, its body unread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from fednano_flwr.exchange.wire.tokens import Access, TokenError
from fednano_flwr.exchange.wire.watch import NO_CALL, UNWATCHED, Watch


class Guard(grpc.ServerInterceptor):
    """Lets calls with a good token through, and each message of a stream while it stays good.

    Args:
        watch: is told who is not let through.
    """

    def __init__(self, tokens: Access, watch: Watch = UNWATCHED) -> None:
        self._tokens = tokens
        self._watch = watch

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        try:
            self._tokens.owner(details.invocation_metadata)
        except TokenError as error:
            self._watch.answered(NO_CALL, error)
            return _refusal(str(error))
        handler = continuation(details)
        return self._watched(handler) if handler is not None and handler.stream_stream else handler

    def _watched(self, handler: Any) -> grpc.RpcMethodHandler:
        """The same handler; it is given messages, unparsed, only while the token is good."""

        def watched(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            for message in messages:
                try:
                    self._tokens.owner(context.invocation_metadata())
                except TokenError as error:
                    self._watch.answered(NO_CALL, error)
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
                yield message

        return grpc.stream_stream_rpc_method_handler(
            lambda messages, context: handler.stream_stream(watched(messages, context), context)
        )


def _refusal(why: str) -> grpc.RpcMethodHandler:
    """Ends a call of any kind; as a stream's handler it need not read what was sent."""

    def refuse(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, why)
        yield b""  # never reached: makes this the generator that a stream's handler is

    return grpc.stream_stream_rpc_method_handler(refuse)
