"""Certificates: their dates, and whether one side of a TLS connection will trust the other."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

from fednano_flwr.config import LLMConfig
from fednano_flwr.doctor.finding import Finding, ok, problem, warning

SOON_DAYS = 30
FLIGHTS = 4
"""Of messages from side to side until both are done."""
EXPIRED, NOT_YET = 10, 9
NAMES = (62, 64)  # another host name, another IP address
UNKNOWN_ISSUER = (2, 7, 18, 19, 20, 21)
"""Numbers of OpenSSL's verification errors (x509_vfy.h)."""


def check_dates(key: str, path: str) -> list[Finding]:
    """Whether certificates that are valid today will be for a while.

    Args:
        path: of their file; "" for none.

    Raises:
        ConfigError: the file cannot be used, or one of them is not valid today.
    """
    from cryptography import x509

    from fednano_flwr.exchange.wire.tls import read_ca

    findings = []
    for certificate in x509.load_pem_x509_certificates(read_ca(key, path)) if path else []:
        end = certificate.not_valid_after_utc
        left = (end - datetime.now(UTC)).days
        name = f"{key} = {path!r}: {certificate.subject.rfc4514_string()}"
        until = f"{end:%Y-%m-%d %H:%M} UTC"
        if left >= SOON_DAYS:
            findings.append(ok(f"{name} until {until}"))
            continue
        do = "have a new one made; connections made after that fail, in a run too"
        findings.append(warning(f"{name} expires in {left} days ({until})", do))
    return findings


def check_trust(llm: LLMConfig, ca_path: str) -> list[Finding]:
    """Whether a client with this CA trusts the service at the address that clients dial.

    Raises:
        ConfigError: a file cannot be used.
    """
    from fednano_flwr.exchange.wire.tls import read_ca, read_identity

    if read_identity(llm) is None:
        return []
    if not ca_path:
        return [
            warning(
                "exchange.ca-cert is not set: whether clients trust llm.tls-cert for the address "
                "that they dial was not tried",
                "set it here to the file of the CA's certificate (clients may have their own "
                "ca-cert in the node config)",
            )
        ]
    host = llm.address.rpartition(":")[0].strip("[]") if llm.address else llm.bind
    own = (Path(llm.tls_cert).expanduser(), Path(llm.tls_key).expanduser())
    try:
        handshake(*own, read_ca("exchange.ca-cert", ca_path), host)
    except ssl.SSLCertVerificationError as error:
        found = distrust(error, host, "exchange.ca-cert")
        what = f"llm.tls-cert = {llm.tls_cert!r}: clients will not trust it: {found.what}"
        return [problem(what, found.do)]
    return [ok(f"clients that trust exchange.ca-cert will trust llm.tls-cert at {host}")]


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


def trusting(ca: bytes) -> ssl.SSLContext:
    """A client's side that trusts the certificates that a CA file's have signed, and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode("ascii", errors="ignore"))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC does
    context.set_alpn_protocols(["h2"])
    return context


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
            f"its certificate was not signed by the CA in {ca_key} ({error.verify_message})",
            f"set {ca_key} to the certificate of the CA that signed llm.tls-cert; where there are "
            "CAs in between, llm.tls-cert has to hold theirs too",
        )
    if error.verify_code == EXPIRED:
        do = "have a new one made for llm.tls-cert, and check this machine's clock"
        return problem("its certificate has expired", do)
    if error.verify_code == NOT_YET:
        clock = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        return problem("its certificate is not valid yet", f"check this machine's clock ({clock})")
    return problem(f"its certificate is not trusted: {error.verify_message}", f"check {ca_key}")
