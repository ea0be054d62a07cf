"""A client's connection to a host: one stream of calls, failures repeated, bytes counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

import grpc

from fednano_flwr.config.proxies import open_channel, proxy_of
from fednano_flwr.exchange.errors import (
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
)

log = logging.getLogger(__name__)
Reply = TypeVar("Reply")
Metadata = Sequence[tuple[str, str]]

METHOD = "/fednano.v1.LLM/Session"
RETRY_SECONDS = 60.0
"""For so long a failed request is repeated."""
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
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A lost host is looked for again at once, not after gRPC's own minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel is the old connection
]


@dataclass
class StepTraffic:
    """Step traffic of one client, counted on serialized messages, repeats included.

    Attributes:
        bytes_up: bytes of requests sent to the host.
        bytes_down: bytes of its replies.
        calls: requests that were answered.
        retries: requests sent again after a failure.
        seconds: time that the thread which takes steps has waited for answers, retries included.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    calls: int = 0
    retries: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(
        self, up: int = 0, down: int = 0, calls: int = 0, retries: int = 0, seconds: float = 0.0
    ) -> None:
        """Count; several connections of a client may."""
        with self._lock:
            self.bytes_up += up
            self.bytes_down += down
            self.calls += calls
            self.retries += retries
            self.seconds += seconds


class NoAnswerError(grpc.RpcError):
    """The host did not answer in time."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.DEADLINE_EXCEEDED

    def details(self) -> str:
        return "no answer in time"


class Session:
    """A stream of calls and answers, one call at a time.

    Messages travel as bytes, so that they are serialized once, and counted as they are.
    """

    def __init__(self, channel: grpc.Channel, metadata: Metadata = ()) -> None:
        self._calls: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers: SimpleQueue[bytes | grpc.RpcError] = SimpleQueue()
        self._stream = channel.stream_stream(METHOD)(iter(self._calls.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="llm-session", daemon=True)
        self._reader.start()

    def ask(self, call: bytes, timeout: float) -> bytes:
        """The answer to a serialized call. After an error the session is of no more use.

        Raises:
            grpc.RpcError: the stream broke, or no answer within `timeout` seconds.
        """
        self._calls.put(call)
        try:
            answer = self._answers.get(timeout=timeout)
        except Empty:
            raise NoAnswerError from None
        if isinstance(answer, grpc.RpcError):
            raise answer
        return answer

    def close(self) -> None:
        """End the stream, whatever it is doing."""
        self._calls.put(None)
        self._stream.cancel()
        self._reader.join()

    def _read(self) -> None:
        try:
            for answer in self._stream:
                self._answers.put(answer)
        except grpc.RpcError as error:
            self._answers.put(error)


class Connection:
    """Calls to the host at `address`, repeated with doubling pauses while it cannot be reached.

    Args:
        metadata: goes along with every call.
        timeout: seconds that one attempt may take.
        retry_seconds: how long to go on trying, counted from the first attempt's failure, so that
            there is a second attempt however long the first one took; 0: there is none.
        ca: see `RemoteLLM`.

    Attributes:
        timed: whether its waiting counts.
    """

    def __init__(
        self,
        address: str,
        metadata: Metadata,
        timeout: float,
        retry_seconds: float,
        ca: bytes | None,
        traffic: StepTraffic,
    ) -> None:
        self._address, self._metadata, self._ca = address, metadata, ca
        self._timeout, self._retry_seconds, self._traffic = timeout, retry_seconds, traffic
        self._proxy = proxy_of(address, ca)
        if self._proxy:
            log.warning("LLM host %s is asked through the proxy of %s", address, self._proxy)
        self._session: Session | None = None
        self.timed = True
        self._connect()

    def close(self) -> None:
        self._end_session()
        self._channel.close()

    def ask(self, call: bytes, understand: Callable[[bytes], Reply]) -> Reply:
        """The answer to a serialized call of the session.

        Args:
            understand: reads the answer; raises `HostBusyError` where the call is to be repeated.
        """

        def ask() -> Reply:
            if self._session is None:
                self._session = Session(self._channel, self._metadata)
            self._traffic.add(up=len(call))
            try:
                received = self._session.ask(call, self._timeout)
            except grpc.RpcError:
                self._end_session()
                raise
            self._traffic.add(down=len(received))
            return understand(received)

        return self._persistently(ask)

    def _persistently(self, ask: Callable[[], Reply]) -> Reply:
        """Ask until there is an answer, or until `retry_seconds` after a failure are over."""
        started = time.monotonic()
        pause = 0.1
        end: float | None = None
        while True:
            try:
                reply = ask()
                break
            except grpc.RpcError as error:
                reason = self._reason(error)
            except HostBusyError as busy:
                reason = f"busy: {busy}"
            now = time.monotonic()
            end = now + self._retry_seconds if end is None else end
            if now >= end:
                raise HostUnreachableError(
                    f"LLM host {self._address} did not answer for {now - started:.0f} s ({reason})"
                )
            pause = min(pause, end - now)
            log.warning("LLM host %s: %s, trying again in %.1f s", self._address, reason, pause)
            self._traffic.add(retries=1)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
        self._traffic.add(calls=1, seconds=time.monotonic() - started if self.timed else 0.0)
        return reply

    def _reason(self, error: grpc.RpcError) -> str:
        """Why a call that is to be repeated has failed.

        Raises:
            HostRefusedError: repeating it is of no use.
        """
        code, detail = error.code(), str(error.details())  # type: ignore[attr-defined]
        too_large = code == CROWDED and "larger than max" in detail
        distrusted = self._ca is not None and any(sign in detail for sign in NO_TRUST)
        if too_large:
            detail += " (llm.max-tokens): use a smaller batch-size"
        if distrusted:
            detail = f"{DISTRUSTED} ({detail})"
        if too_large or distrusted or code not in (*LOST, CROWDED):
            raise HostRefusedError(f"LLM host {self._address}: {detail}") from error
        reason = f"{code.name}: {detail}"
        if code == CROWDED and "Concurrent RPC limit" in detail:
            reason += " (llm.max-clients)"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:  # the way there may be gone unnoticed
            self.close()
            self._connect()
        if self._ca is None and CLOSED_AT_ONCE in detail:
            reason += f"; {MAYBE_TLS}"
        if self._proxy:
            reason += f"; asked through the proxy of {self._proxy}"
        return reason

    def _connect(self) -> None:
        self._channel = open_channel(self._address, self._ca, OPTIONS)

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
