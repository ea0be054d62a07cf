"""A client's stream of calls to the host and of its answers, one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue

import grpc

METHOD = "/fednano.v1.LLM/Session"


class NoAnswerError(grpc.RpcError):
    """The host did not answer in time."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.DEADLINE_EXCEEDED

    def details(self) -> str:
        return "no answer in time"


class Session:
    """Messages travel as bytes, so that they are serialized once, and counted as they are.

    Args:
        metadata: goes along with the stream.
    """

    def __init__(self, channel: grpc.Channel, metadata: Sequence[tuple[str, str]] = ()) -> None:
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
