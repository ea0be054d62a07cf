"""Why one side of a TLS connection does not trust the other, in words."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fednano_flwr.doctor.finding import Finding, ok, problem, warning

SOON_DAYS = 30
FLIGHTS = 4
"""Of messages from side to side until both are done."""
EXPIRED, NOT_YET = 10, 9
NAMES = (62, 64)  # another host name, another IP address
UNKNOWN_ISSUER = (2, 7, 18, 19, 20, 21)
"""Numbers of OpenSSL's verification errors (x509_vfy.h)."""


def distrust(error: ssl.SSLCertVerificationError, host: str, ca_key: str) -> Finding:
    """What a failed verification means.

    Args:
        host: that was dialled.
        ca_key: that names the file of the CA's certificate.
    """
    if error.verify_code in NAMES:
        return problem(
            f"its certificate is for another address than {host!r}",
            "set llm.address to a name or IP address that is in the certificate, or have one made "
            f"for {host!r} (subjectAltName; an IP address counts as one, not as a name)",
        )
    if error.verify_code in UNKNOWN_ISSUER:
        return problem(
            f"its certificate is not one that the CA in {ca_key} vouches for "
            f"({error.verify_message})",
            f"set {ca_key} to the certificate of the CA that signed llm.tls-cert; where there are "
            "CAs in between, llm.tls-cert has to hold theirs too",
        )
    if error.verify_code == EXPIRED:
        return problem(
            "its certificate has expired",
            "have a new one made for llm.tls-cert, and see whether this machine's clock is right",
        )
    if error.verify_code == NOT_YET:
        return problem(
            "its certificate is not valid yet",
            f"see whether this machine's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC) is right",
        )
    return problem(f"its certificate is not trusted: {error.verify_message}", f"check {ca_key}")


def trusting(ca: bytes) -> ssl.SSLContext:
    """A client's side that trusts what a CA file's certificates vouch for, and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode("ascii", errors="ignore"))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does
    context.set_alpn_protocols(["h2"])
    return context


def handshake(certificate: Path, key: Path, ca: bytes, host: str) -> None:
    """Let a service with these files and a client that trusts `ca` meet, in memory.

    Raises:
        ssl.SSLError: the client does not trust the service at `host`.
    """
    service = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    service.load_cert_chain(certificate, key, password=lambda: "")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(ca).wrap_bio(back, there, server_hostname=host)
    server = service.wrap_bio(there, back, server_side=True)
    for _ in range(FLIGHTS):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()


def check_dates(key: str, path: str, pem: bytes) -> list[Finding]:
    """Whether certificates that are valid today will be for a while."""
    findings = []
    for certificate in x509.load_pem_x509_certificates(pem):
        left = certificate.not_valid_after_utc - datetime.now(UTC)
        until = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if left.days < SOON_DAYS:
            findings.append(
                warning(
                    f"{key} = {path!r}: {certificate.subject.rfc4514_string()} expires in "
                    f"{left.days} days ({until})",
                    "have a new one made; connections made after that fail, in a run too",
                )
            )
        else:
            findings.append(
                ok(f"{key} = {path!r}: {certificate.subject.rfc4514_string()} until {until}")
            )
    return findings
