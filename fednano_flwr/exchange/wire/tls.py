"""Certificates and keys of the LLM service, read from PEM files and checked before they are used.

Errors name the config key and the file, and never what the file holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from fednano_flwr.config import ConfigError, LLMConfig


@dataclass(frozen=True)
class Identity:
    """What the service proves itself with: PEM of its private key and of its certificate chain."""

    key: bytes = field(repr=False)
    certificate: bytes


def read_identity(config: LLMConfig) -> Identity | None:
    """The service's key and certificate; None where the config names none.

    Raises:
        ConfigError: a file cannot be read, the certificate is not valid today, or the key is
            another one's.
    """
    if not config.tls_cert:
        return None
    certificate = _read("llm.tls-cert", config.tls_cert)
    own = _certificates("llm.tls-cert", config.tls_cert, certificate)[0]
    key = _read("llm.tls-key", config.tls_key)
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, NotImplementedError):  # the reasons may quote the file
        raise _error(
            "llm.tls-key", config.tls_key, "holds no unencrypted PEM private key"
        ) from None
    if _spki(private.public_key()) != _spki(own.public_key()):
        reason = f"is not the key of the certificate llm.tls-cert = {config.tls_cert!r}"
        raise _error("llm.tls-key", config.tls_key, reason)
    return Identity(key, certificate)


def read_ca(name: str, path: str) -> bytes:
    """PEM of the certificates that a client trusts.

    Args:
        name: of the key that names the file, for errors.

    Raises:
        ConfigError: it cannot be read, or a certificate in it is not valid today.
    """
    pem = _read(name, path)
    _certificates(name, path, pem)
    return pem


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise _error(name, path, f"cannot be read: {error.strerror}") from None


def _certificates(name: str, path: str, pem: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise _error(name, path, "holds no PEM certificate") from None
    now = datetime.now(UTC)
    for certificate in found:
        if now > certificate.not_valid_after_utc:
            raise _error(
                name, path, f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )
        if now < certificate.not_valid_before_utc:
            start = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
            raise _error(name, path, f"is not valid before {start} UTC")
    return found


def _spki(key: object) -> bytes:
    """A public key in one form for all kinds."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]


def _error(name: str, path: str, reason: str) -> ConfigError:
    return ConfigError(f"{name} = {path!r}: {reason}")
