"""Who may use the LLM service: the tokens of a run, or one fixed token in a file.

A run's token is for one node, one round, and training or evaluation only. It is
`HMAC-SHA256(secret, "run.node.round.phase")` with a secret of the ServerApp's process, so the
service keeps no table of tokens and nobody else can make one. A caller sends the token and what it
is for in the metadata of every stream:

    authorization: Bearer RUN.NODE.ROUND.PHASE.TOKEN
"""

from __future__ import annotations

import hmac
import os
import secrets
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from fednano_flwr.config import ConfigError
from fednano_flwr.exchange.at_host import AtHost

KEY = "authorization"
SCHEME = "Bearer "
SECRET_BYTES = 32
SHORTEST = 16
"""Characters of a token in a file."""
FIXED_OWNER = b"asks"
FROZEN = "frozen"
"""A caller's phase: its calls are computed with the model as it was before training."""

Metadata = Iterable[tuple[str, str | bytes]]


class TokenError(PermissionError):
    """The caller may not use the service; the text says why and holds no token."""


class Admission(NamedTuple):
    """Whom a call is from, and what it is to be computed with.

    Attributes:
        owner: None where it is who the call says.
        at_host: of the phase that the token is for.
    """

    owner: bytes | None = None
    at_host: AtHost | None = None


class Access(Protocol):
    """Decides whether a caller may use the service."""

    def admit(self, metadata: Metadata) -> Admission:
        """Whom a stream's token belongs to; raises `TokenError` without a good one."""
        ...


def owner(run: int, node: int) -> bytes:
    """The name under which a node of a run owns features and graphs and waits in the queue."""
    return f"{run}/{node}".encode()


def credentials(
    run: int, node: int, server_round: int, phase: str, token: str
) -> tuple[tuple[str, str], ...]:
    """The metadata of a caller's streams; empty without a token."""
    if not token:
        return ()
    return ((KEY, f"{SCHEME}{_claim(run, node, server_round, phase)}.{token}"),)


class Tokens:
    """Makes and checks the tokens of one run.

    Args:
        run: Flower's number of the run.
    """

    def __init__(self, run: int) -> None:
        self._run = run
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._open: tuple[int, str, AtHost | None] | None = None

    @contextmanager
    def open(
        self, server_round: int, phase: str, at_host: AtHost | None = None
    ) -> Iterator[Callable[[int], str]]:
        """Let nodes in while the block runs; yields what makes a node's token.

        Args:
            phase: what nodes are asked to do, "train" or "evaluate".
            at_host: what all calls of this phase are computed with.
        """
        self._open = (server_round, phase, at_host)
        try:
            yield lambda node: self._token(_claim(self._run, node, server_round, phase))
        finally:
            self._open = None

    def admit(self, metadata: Metadata) -> Admission:
        """See `Access.admit`: the run and node of the token, what its phase has at the host.

        Raises:
            TokenError: there is no token, it is not genuine, or its time is over.
        """
        claim, token = _bearer(
            metadata,
            "the LLM service answers the clients that this run's ServerApp asked, with the token "
            "of its message, and nobody else",
        )
        if not hmac.compare_digest(self._token(claim).encode(), token.encode()):
            raise TokenError("the token is not the one of this node, run, round and phase")
        run, node, server_round, phase = claim.split(".")
        open = self._open  # read once: the next phase may begin in another thread
        if open is None or open[:2] != (int(server_round), phase):
            raise TokenError(f"the token was good for round {server_round}, {phase}; that is over")
        return Admission(owner(int(run), int(node)), open[2])

    def _token(self, claim: str) -> str:
        return hmac.digest(self._secret, claim.encode(), "sha256").hex()


class FixedToken:
    """Lets in everybody who has the token; before limits and queue, all of them are one node.

    Args:
        token: of printable characters without a dot.
        frozen: what the calls of phase `FROZEN` are computed with; None for the same as all others.
    """

    def __init__(self, token: str, frozen: AtHost | None = None) -> None:
        self._token, self._frozen = token.encode(), frozen

    def admit(self, metadata: Metadata) -> Admission:
        """See `Access.admit`."""
        where = "the file that the service was started with (--token-file)"
        claim, token = _bearer(metadata, f"this LLM service asks for the token in {where}")
        if not hmac.compare_digest(self._token, token.encode()):
            raise TokenError(f"the token is not this LLM service's: take {where}")
        return Admission(FIXED_OWNER, self._frozen if claim.endswith(f".{FROZEN}") else None)


def make_token(file: Path) -> bool:
    """Write a fresh token where there is no such file; says whether it did.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"--token-file {file}: cannot be written: {error.strerror}") from None
    with os.fdopen(handle, "w", encoding="ascii") as written:
        written.write(secrets.token_urlsafe(32) + "\n")
    return True


def read_token(file: Path) -> str:
    """The token in a file that only its user may read.

    Raises:
        ConfigError: there is none, others may read it, or it is no token.
    """
    try:
        with file.open(encoding="ascii", errors="replace") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            token = opened.read(1024).strip()
    except OSError as error:
        raise ConfigError(f"--token-file {file}: cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(
            f"--token-file {file}: other users may read or write it (mode {mode:04o}); run "
            f"`chmod 600 {shlex.quote(str(file))}`, and make a new token if they may have done so"
        )
    plain = token.isascii() and token.isprintable() and not set(token) & set(". ")
    if len(token) < SHORTEST or not plain:
        raise ConfigError(
            f"--token-file {file}: holds no token (at least {SHORTEST} characters, no space, no "
            "dot); `fednano serve` makes one where there is no such file"
        )
    return token


def _claim(run: int, node: int, server_round: int, phase: str) -> str:
    return f"{run}.{node}.{server_round}.{phase}"


def _bearer(metadata: Metadata, advice: str) -> tuple[str, str]:
    """What a stream's token is for, and the token."""
    value = next((value for key, value in metadata if key == KEY), None)
    if not isinstance(value, str) or not value.startswith(SCHEME):
        raise TokenError(f"no token: {advice}")
    claim, _, token = value.removeprefix(SCHEME).rpartition(".")
    return claim, token
