"""The LLM service's certificate and key, the CA that clients trust, and the clock they rely on."""

from __future__ import annotations

import shlex
import ssl
import time
from pathlib import Path

from fednano_flwr.config import LLM, RunConfig
from fednano_flwr.doctor import trust
from fednano_flwr.doctor.finding import Finding, ok, problem, warning

DAY = 86_400.0
PACKAGE = Path(__file__).resolve().parents[1]


def check_service(config: RunConfig) -> list[Finding]:
    """The server's own certificate and key, and whether clients that trust the CA will trust it.

    Raises:
        ConfigError: the files cannot be used.
    """
    from fednano_flwr.exchange.wire.tls import read_ca, read_identity

    llm, ca_path = config.llm, config.exchange.ca_cert
    identity = read_identity(llm)
    if identity is None:
        return [ok("llm.tls-cert is not set: the LLM service speaks no TLS")]
    findings = trust.check_dates("llm.tls-cert", llm.tls_cert, identity.certificate)
    findings.append(ok("llm.tls-key is the key of llm.tls-cert"))
    findings += check_key_file(Path(llm.tls_key).expanduser())
    if not ca_path:
        findings.append(
            warning(
                "exchange.ca-cert is not set, so that it was not tried whether clients will trust "
                "llm.tls-cert for the address that they dial",
                "set it here to the file of the CA's certificate (clients may have their own "
                "ca-cert in the node config)",
            )
        )
        return findings
    ca = read_ca("exchange.ca-cert", ca_path)
    findings += trust.check_dates("exchange.ca-cert", ca_path, ca)
    return findings + check_trust(llm, ca)


def check_trust(llm: LLM, ca: bytes) -> list[Finding]:
    """Whether a client with this CA trusts the service at the address that clients dial."""
    host = host_of(llm.address) if llm.address else llm.bind
    paths = (Path(llm.tls_cert).expanduser(), Path(llm.tls_key).expanduser())
    try:
        trust.handshake(*paths, ca, host)
    except ssl.SSLCertVerificationError as error:
        found = trust.distrust(error, host, "exchange.ca-cert")
        what = f"llm.tls-cert = {llm.tls_cert!r}: clients will not trust it: {found.what}"
        return [Finding(found.level, what, found.do)]
    return [ok(f"clients that trust exchange.ca-cert will trust llm.tls-cert at {host}")]


def check_key_file(file: Path) -> list[Finding]:
    """Whether the private key is its owner's alone."""
    mode = file.stat().st_mode & 0o777
    if not mode & 0o077:
        return []
    return [
        warning(
            f"llm.tls-key = {str(file)!r}: others of this machine may read it (mode {mode:04o})",
            shlex.join(["chmod", "600", str(file)]),
        )
    ]


def check_ca(key: str, path: str) -> list[Finding]:
    """The CA that a client trusts.

    Args:
        path: "" for none.

    Raises:
        ConfigError: the file cannot be used.
    """
    from fednano_flwr.exchange.wire.tls import read_ca

    if path:
        return trust.check_dates(key, path, read_ca(key, path))
    return [
        ok(
            "no ca-cert in the node config and no exchange.ca-cert: this client speaks to the LLM "
            "service without TLS, and refuses one that has it"
        )
    ]


def check_clock(now: float) -> list[Finding]:
    """Whether the clock is one that certificates' dates can be compared with.

    Args:
        now: seconds since 1970, as this machine counts them.
    """
    newest = max(file.stat().st_mtime for file in PACKAGE.rglob("*.py"))
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < newest - DAY:
        return [
            problem(
                f"this machine's clock says {shown}, which is before fednano-flwr was installed",
                "set the clock (timedatectl set-ntp true): certificates seem not valid yet",
            )
        ]
    return [ok(f"this machine's clock says {shown}")]


def host_of(address: str) -> str:
    """The host in `host:port`, without the brackets of an IPv6 address."""
    return address.rpartition(":")[0].strip("[]")
