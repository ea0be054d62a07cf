"""Who may use the LLM service: tokens for one node, one round, and training or evaluation only.

A token is `HMAC-SHA256(secret, "run.node.round.phase")`. The secret is the ServerApp process's own,
so that the service keeps no table of tokens and none can be made elsewhere. A caller sends what the
token is for along with it, in the metadata of every call:

    authorization: Bearer RUN.NODE.ROUND.PHASE.TOKEN
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

KEY = "authorization"
SCHEME = "Bearer "
SECRET_BYTES = 32

Metadata = Iterable[tuple[str, str | bytes]]


class TokenError(PermissionError):
    """The caller may not use the service; the text says why and holds no token."""


def credentials(
    run: int, node: int, server_round: int, phase: str, token: str
) -> tuple[tuple[str, str], ...]:
    """The metadata that goes along with a caller's calls; none without a token."""
    if not token:
        return ()
    return ((KEY, f"{SCHEME}{_claim(run, node, server_round, phase)}.{token}"),)


class Access(Protocol):
    """What says who calls."""

    def owner(self, metadata: Metadata) -> bytes:
        """Whom a call's token speaks for; raises `TokenError` without a good one."""
        ...


class Tokens:
    """Makes and checks the tokens of one run.

    Args:
        run: Flower's number of the run.
    """

    def __init__(self, run: int) -> None:
        self._run = run
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._open: tuple[int, str] | None = None

    @contextmanager
    def open(self, server_round: int, phase: str) -> Iterator[Callable[[int], str]]:
        """Let nodes in while the block runs; yields what makes a node's token.

        Args:
            phase: what nodes are asked to do, "train" or "evaluate".
        """
        self._open = (server_round, phase)
        try:
            yield lambda node: self._token(_claim(self._run, node, server_round, phase))
        finally:
            self._open = None

    def owner(self, metadata: Metadata) -> bytes:
        """The run and node that a call's token speaks for.

        Raises:
            TokenError: there is no token, it is not genuine, or its time is over.
        """
        value = next((value for key, value in metadata if key == KEY), None)
        if not isinstance(value, str) or not value.startswith(SCHEME):
            raise TokenError(
                "no token: the LLM service answers the clients that this run's ServerApp asked, "
                "with the token of its message, and nobody else"
            )
        claim, _, token = value.removeprefix(SCHEME).rpartition(".")
        if not hmac.compare_digest(self._token(claim).encode(), token.encode()):
            raise TokenError("the token is not the one of this node, run, round and phase")
        run, node, server_round, phase = claim.split(".")
        if (int(server_round), phase) != self._open:
            raise TokenError(f"the token was good for round {server_round}, {phase}; that is over")
        return owner(int(run), int(node))

    def _token(self, claim: str) -> str:
        return hmac.digest(self._secret, claim.encode(), "sha256").hex()


def owner(run: int, node: int) -> bytes:
    """Whose features and graphs, and whose turn in the queue: a node's, in a run."""
    return f"{run}/{node}".encode()


def _claim(run: int, node: int, server_round: int, phase: str) -> str:
    return f"{run}.{node}.{server_round}.{phase}"
