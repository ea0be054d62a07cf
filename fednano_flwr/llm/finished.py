"""What sessions have led to, in the ServerApp's process until their round is merged.

So a replica that is lost after a client has ended its session costs nothing.
"""

from __future__ import annotations

import threading
from typing import Any

from fednano_flwr.exchange.at_host import SessionResult, Turn
from fednano_flwr.exchange.protocol import LLMInfo, LLMService


class FinishedSessions(LLMService):
    """An `LLMService` that keeps the results of another one's sessions; for several threads.

    Args:
        host: what answers all calls.
    """

    def __init__(self, host: LLMService) -> None:
        self._host = host
        self._latest: dict[bytes, tuple[int, SessionResult]] = {}  # one an owner, to be bounded
        self._ending: dict[bytes, threading.Lock] = {}

    def describe(self) -> LLMInfo:
        return self._host.describe()

    def end(self, turn: Turn, owner: bytes = b"") -> None:
        """See `LLMService.end`; one that has ended may be ended again."""
        with self._ending.setdefault(owner, threading.Lock()):  # the same call, made twice, waits
            if not self._has(owner, turn.session):
                result = self._host.end(turn, owner)
                assert result is not None
                self._latest[owner] = turn.session, result

    def result(self, owner: bytes, session: int) -> SessionResult:
        """Of the owner's latest session that has ended.

        Raises:
            ValueError: it has another number, or there is none.
        """
        if not self._has(owner, session):
            raise ValueError(f"no session {session} of this client has ended")
        return self._latest[owner][1]

    def forget_sessions(self) -> None:
        """See `LLMService.forget_sessions`."""
        self._latest.clear()
        self._host.forget_sessions()

    def _has(self, owner: bytes, session: int) -> bool:
        return owner in self._latest and self._latest[owner][0] == session

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        return getattr(self._host, method)(*arguments, owner)
