"""Where the server is about to listen."""

from __future__ import annotations

import errno
import socket

from fednano_flwr.config import LLM, address_to_dial, host_and_port, is_loopback
from fednano_flwr.doctor.finding import Finding, ok, problem, warning


def check_listening(llm: LLM) -> list[Finding]:
    """Whether `llm.bind` and `llm.port` can be listened on; they are for a moment."""
    name = f"llm.bind = {llm.bind!r}, llm.port = {llm.port}"
    return [_free(name, llm.bind, llm.port, "llm.bind", "llm.port")]


def check_metrics(llm: LLM) -> list[Finding]:
    """The same of `llm.metrics`, where there is one; and who else can read there."""
    if not llm.metrics:
        return []
    name = f"llm.metrics = {llm.metrics!r}"
    host, port = host_and_port(llm.metrics)
    found = [_free(name, host, port, "llm.metrics", "llm.metrics")]
    if not is_loopback(host):
        found.append(
            warning(
                f"{name}: everyone who reaches that port can read the metrics; they need no token",
                "right on a private network; else take a loopback address",
            )
        )
    return found


def _free(name: str, bind: str, port: int, bind_key: str, port_key: str) -> Finding:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except (socket.gaierror, UnicodeError) as error:
        return problem(f"{name}: the name is not known here ({error})", "use an IP address")
    except OSError as error:
        return _refused(name, error, port, bind_key, port_key)
    return ok(f"{name}: " + ("free" if port else "any port that is free then"))


def _refused(name: str, error: OSError, port: int, bind_key: str, port_key: str) -> Finding:
    if error.errno == errno.EADDRINUSE:
        return problem(
            f"{name}: something listens there already",
            "if that is a run of yours, all is well until the next is started; else end it "
            f"(ss -ltnp 'sport = :{port}' shows what it is), or set {port_key} to another",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return problem(
            f"{name}: this machine does not have that address",
            f"set {bind_key} to one that it has (ip addr), or to 0.0.0.0 for all of them",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return problem(f"{name}: not allowed ({error.strerror})", "take a port from 1024 on")
    return problem(f"{name}: {error.strerror}")


def check_reach(llm: LLM) -> list[Finding]:
    """Whether clients can dial what the server will tell them, and who else can read along."""
    findings = []
    if llm.address:
        findings += _check_address(llm)
    elif is_loopback(llm.bind):
        findings.append(
            ok(
                f"llm.bind = {llm.bind!r}: only clients on this machine reach the LLM service; for "
                "others set llm.bind, llm.address, llm.tls-cert and llm.tls-key"
            )
        )
    if not is_loopback(llm.bind) and not llm.tls_cert:
        findings.append(
            warning(
                f"llm.bind = {llm.bind!r} without TLS: everyone on the way can read tokens, "
                "prompts and answers, and use a token while its round lasts",
                "set llm.tls-cert and llm.tls-key",
            )
        )
    return findings


def _check_address(llm: LLM) -> list[Finding]:
    name = f"llm.address = {llm.address!r}"
    try:
        host, _ = address_to_dial(llm.address)
    except ValueError as error:
        return [problem(f"llm.address = {error}", "it is what clients dial")]
    findings = []
    if llm.port == 0:
        findings.append(
            warning(
                f"{name} names a port, and llm.port = 0 takes any that is free",
                "set llm.port to the port that clients dial, or to the one that is forwarded to",
            )
        )
    if is_loopback(host):
        findings.append(
            warning(
                f"{name}: on a client's machine that is the client's machine",
                "right where clients have a tunnel there; else set it to this machine's address",
            )
        )
        return findings
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError) as error:
        findings.append(
            problem(f"{name}: the name is not known here ({error})", "use an IP address")
        )
    return findings or [ok(f"{name} is what clients dial")]
