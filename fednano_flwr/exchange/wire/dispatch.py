"""From a serialized call of a client to the answer of an `LLMService`."""

from __future__ import annotations

import logging

from google.protobuf.message import DecodeError

from fednano_flwr.exchange.at_host import AtHost
from fednano_flwr.exchange.errors import (
    FeaturesMissingError,
    GoneError,
    HostBusyError,
    RefusalError,
    SessionGoneError,
)
from fednano_flwr.exchange.protocol import PROTOCOL_VERSION, Inputs, LLMService
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.auth import owner as owner_of
from fednano_flwr.exchange.wire.methods import METHODS
from fednano_flwr.exchange.wire.metrics import NO_CALL, NO_METRICS, ServiceMetrics
from fednano_flwr.exchange.wire.nodes import Activity, Meter

log = logging.getLogger(__name__)


class Dispatcher:
    """Answers calls with what a service computes, or with the reason why not.

    Args:
        meter: counts what each node takes.
        activity: notes each call that was served to a node whose token says who it is.
        metrics: of how each call ends.
    """

    def __init__(
        self,
        service: LLMService,
        meter: Meter | None = None,
        activity: Activity | None = None,
        metrics: ServiceMetrics = NO_METRICS,
    ) -> None:
        self._service = service
        self._info = service.describe()
        self._meter, self._activity, self._metrics = meter, activity, metrics

    def answer(
        self, message: bytes, owner: bytes | None = None, at_host: AtHost | None = None
    ) -> pb.Answer:
        """The answer to a serialized call; never raises, so that one bad call ends no session.

        Args:
            owner: who asks, where a token proves it; otherwise it is who the call says.
            at_host: what the call is computed with.
        """
        answer, kind, failed = pb.Answer(), NO_CALL, None
        try:
            if owner is not None and self._meter is not None:
                self._meter.request(owner)
            call = _parsed(message)
            kind = call.WhichOneof("what") or NO_CALL
            self._carry_out(kind, call, owner, at_host, answer)
        except Exception as error:
            failed = error
        self._metrics.answered(kind, failed)
        match failed:
            case None:
                pass
            case FeaturesMissingError():
                answer.missing.keys.extend(failed.keys)
            case SessionGoneError():
                answer.session_gone = True
            case GoneError():
                answer.gone = True
            case HostBusyError():
                answer.busy = str(failed)
            case ValueError():
                answer.refused = str(failed)
            case _:
                log.error("the LLM host failed to answer a call", exc_info=failed)
                answer.refused = f"the host failed: {type(failed).__name__}: {failed}"
        return answer

    def _carry_out(
        self,
        kind: str,
        call: pb.Call,
        owner: bytes | None,
        at_host: AtHost | None,
        answer: pb.Answer,
    ) -> None:
        if kind == NO_CALL:
            raise RefusalError("an empty call")
        request, reply, method = getattr(call, kind), getattr(answer, kind), METHODS[kind]
        check_protocol(request.header)
        arguments = method.read(request, self._info)
        if method.of_phase:
            arguments = (at_host,)
        elif at_host is not None:
            arguments = tuple(a.through(at_host) if isinstance(a, Inputs) else a for a in arguments)
        who = owner or owner_of(request.header.run, request.header.node)
        if kind in ("describe", "register"):
            result = self._info
        else:
            result = getattr(self._service, kind)(*arguments, who)
        if tokens := method.tokens(*arguments):
            self._metrics.computed(tokens)
        reply.SetInParent()
        method.fill(reply, result, request)
        if owner is not None and self._activity is not None:
            self._activity.served(owner, method.computes)


def _parsed(message: bytes) -> pb.Call:
    try:
        return pb.Call.FromString(message)
    except DecodeError:
        raise RefusalError(f"{len(message)} bytes that are no call") from None


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
