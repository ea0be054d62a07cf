"""One token that does not change, in a file: who may use a service that stays up after training."""

from __future__ import annotations

import hmac
import os
import secrets
import shlex
import stat
from pathlib import Path

from fednano_flwr.config import ConfigError
from fednano_flwr.exchange.wire.tokens import KEY, SCHEME, Metadata, TokenError

OWNER = b"asks"
SHORTEST = 16
"""Characters of a token."""


class FixedToken:
    """Lets whoever has the token in; before limits and queue all of them are one node.

    Args:
        token: of printable characters without a dot.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def owner(self, metadata: Metadata) -> bytes:
        """
        Raises:
            TokenError: there is no token, or it is another one.
        """
        value = next((value for key, value in metadata if key == KEY), None)
        if not isinstance(value, str) or not value.startswith(SCHEME):
            raise TokenError(
                "no token: this LLM service answers who has its token, which lies in the file "
                "that it was started with (--token-file)"
            )
        token = value.removeprefix(SCHEME).rpartition(".")[2]  # a run's callers say who they are
        if not hmac.compare_digest(self._token, token.encode()):
            raise TokenError(
                "the token is not this LLM service's: take the file that it was started with "
                "(--token-file)"
            )
        return OWNER


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
        with file.open(encoding="ascii") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            token = opened.read(1024).strip()
    except OSError as error:
        raise ConfigError(f"--token-file {file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        token, mode = "", 0
    if mode & 0o077:
        raise ConfigError(
            f"--token-file {file}: others than its user may read or write it (mode {mode:04o}); "
            f"do `chmod 600 {shlex.quote(str(file))}`, and make a new token if they may "
            "have done so"
        )
    if len(token) < SHORTEST or "." in token or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-file {file}: holds no token (at least {SHORTEST} characters, no space, no "
            "dot); `fednano serve` makes one where there is no such file"
        )
    return token
