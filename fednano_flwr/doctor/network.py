"""Where the server will listen, and who answers at the addresses that this machine dials."""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import closing

from fednano_flwr.config import ConfigError, LLMConfig, address_to_dial, host_and_port, is_loopback
from fednano_flwr.config.proxies import (
    HTTP,
    LOOPBACK,
    named_proxies,
    open_channel,
    proxies_in_words,
    proxy_of,
    spares,
)
from fednano_flwr.doctor.certificates import distrust, trusting
from fednano_flwr.doctor.finding import Finding, ok, problem, warning

SECONDS = 5.0
"""That a connection, a handshake and a call may take each."""
NO_TOKEN = "no token"
UNKNOWN_NAME = (socket.gaierror, UnicodeError)  # the latter of what cannot be a name
OTHER_PORT = "check that the port is the one of llm.address"


def check_listening(llm: LLMConfig) -> list[Finding]:
    """Whether `llm.bind` and `llm.port` can be listened on, and by whom they can be read."""
    name = f"llm.bind = {llm.bind!r}, llm.port = {llm.port}"
    findings = [_free(name, llm.bind, llm.port, "llm.port")]
    if not is_loopback(llm.bind):
        if not llm.tls_cert:
            what = f"llm.bind = {llm.bind!r} without TLS: everyone on the network path can read "
            what += "tokens, prompts and answers, and use a token while its round lasts"
            findings.append(warning(what, "set llm.tls-cert and llm.tls-key"))
    elif not llm.address:
        findings.append(
            ok(
                f"llm.bind = {llm.bind!r}: only clients on this machine reach the LLM service; for "
                "others set llm.bind, llm.address, llm.tls-cert and llm.tls-key"
            )
        )
    return findings


def check_metrics(llm: LLMConfig) -> list[Finding]:
    """The same of `llm.metrics`, where it is set."""
    if not llm.metrics:
        return []
    name = f"llm.metrics = {llm.metrics!r}"
    host, port = host_and_port(llm.metrics)
    findings = [_free(name, host, port, "llm.metrics")]
    if not is_loopback(host):
        what = f"{name}: everyone who reaches that port can read the metrics; they need no token"
        do = "this is right on a private network; otherwise take a loopback address"
        findings.append(warning(what, do))
    return findings


def _free(name: str, bind: str, port: int, port_key: str) -> Finding:
    """Whether a port can be listened on; it is for a moment."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except UNKNOWN_NAME as error:
        return problem(f"{name}: the name is not known here ({error})", "use an IP address")
    except OSError as error:
        hints = {
            errno.EADDRINUSE: f"another program listens there (ss -ltnp 'sport = :{port}' shows "
            f"which): end it, or set {port_key} to another port; a run of yours is no problem",
            errno.EADDRNOTAVAIL: "take an address that this machine has (ip addr), or 0.0.0.0 for "
            "all of them",
            errno.EACCES: "take a port from 1024 on",
            errno.EPERM: "take a port from 1024 on",
        }
        return problem(f"{name}: {error.strerror}", hints.get(error.errno or 0, ""))
    return ok(f"{name}: " + ("free" if port else "any port that is free then"))


def check_address(llm: LLMConfig) -> list[Finding]:
    """Whether clients reach the server by `llm.address`, whose form the preflight has checked."""
    try:
        host, _ = address_to_dial(llm.address)
    except ValueError:
        return []
    name, findings = f"llm.address = {llm.address!r}", []
    if llm.port == 0:
        what = f"{name} names a port, and llm.port = 0 takes any that is free"
        do = "set llm.port to the port that clients dial, or to the one that is forwarded to"
        findings.append(warning(what, do))
    if is_loopback(host):
        what = f"{name}: on a client's machine that is the client's machine"
        do = "this is right where clients have a tunnel; otherwise set it to this machine's address"
        return [*findings, warning(what, do)]
    try:
        socket.getaddrinfo(host, None)
    except UNKNOWN_NAME as error:
        what = f"{name}: the name is not known here ({error})"
        findings.append(problem(what, "use an IP address"))
    return findings


def check_proxies(spared: bool) -> list[Finding]:
    """Whether this machine is reached without a proxy, and which one others are reached by.

    Args:
        spared: whoever starts Flower's programs sees to it that this machine's addresses are.

    Raises:
        ConfigError: one of the proxies cannot be used.
    """
    words = proxies_in_words()
    missing = [name for name in LOOPBACK if not spares(name)]
    if words and missing and not spared:
        what = f"{_listed(named_proxies())}, and no_proxy lacks {', '.join(missing)}: Flower's "
        what += "programs on this machine reach one another through that proxy, if at all"
        do = f"export no_proxy={','.join(LOOPBACK)} where they are started"
        return [problem(what, do)]
    return [ok(words)] if words else []


def check_superlink(text: str) -> list[Finding]:
    """Whether a SuperLink's port can be reached, and whether it speaks TLS."""
    host, port = address_to_dial(text)
    name = f"SuperLink at {text}"
    named = {key: url for key, url in named_proxies().items() if key.lower() in HTTP}
    if named and not spares(host):
        what = f"{name}: SuperNodes reach it through the proxy of {_listed(named)}, which was not "
        what += "tried; without TLS that proxy reads adapters and tokens"
        do = f"add {host} to no_proxy, unless the proxy is the only way there and it has TLS"
        return [warning(what, do)]
    if unreached := _unreached(host, port, name):
        if unreached.level == "warning":
            do = "start flower-superlink there, with --host 0.0.0.0 for clients elsewhere"
            return [problem(unreached.what, do)]
        return [unreached]
    if speaks_tls(host, port):
        take = "SuperNodes take --root-certificates with its CA's certificate"
        return [ok(f"{name} speaks TLS; {take}")]
    if not _speaks_http(host, port):
        what = f"{name}: a program listens there, and answers neither TLS nor HTTP"
        do = "check that the port is the one that flower-superlink was given as --port"
        return [problem(what, do)]
    if is_loopback(host):
        return [ok(f"{name} answers, without TLS; SuperNodes take --insecure")]
    what = f"{name} answers without TLS: everyone on the network path can read adapters and tokens"
    do = "start flower-superlink with --ssl-certfile and --ssl-keyfile, SuperNodes with "
    return [warning(what, do + "--root-certificates")]


def check_llm(text: str, ca_key: str, ca_path: str) -> list[Finding]:
    """Whether a FedNano LLM service answers at `host:port`, with a certificate that clients trust.

    Args:
        ca_key, ca_path: what names the CA that clients trust, and its file; "" for no TLS.
    """
    from fednano_flwr.exchange.wire.tls import read_ca

    host, port = address_to_dial(text)
    name = f"LLM service at {text}"
    try:
        ca = read_ca(ca_key, ca_path) if ca_path else None
    except ConfigError:
        what = f"{name}: not tried, as {ca_key} cannot be used"
        return [warning(what, "repair what is said of it under certificates")]
    if proxy := proxy_of(text, ca):
        return [ok(f"{name} is reached through the proxy of {proxy}"), _called(text, ca, name)]
    if unreached := _unreached(host, port, name):
        return [unreached]
    if ca is not None:
        found = _verified(host, port, ca, ca_key)
        first = Finding(found.level, f"{name}: {found.what}", found.do)
    elif speaks_tls(host, port):
        do = "set ca-cert in the node config, or exchange.ca-cert, to the file of the CA's "
        first = problem(f"{name} speaks TLS, and no CA is known here", do + "certificate")
    elif is_loopback(host):
        first = ok(f"{name}: a program listens there")
    else:
        what = f"{name} has no TLS: everyone on the network path can read tokens, prompts and "
        do = "set llm.tls-cert and llm.tls-key at the server, and ca-cert here"
        first = warning(what + "answers", do)
    return [first] if first.level == "problem" else [first, _called(text, ca, name)]


def _unreached(host: str, port: int, name: str) -> Finding | None:
    """Why a port cannot be connected to; None where it can."""
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except UNKNOWN_NAME as error:
        what = f"{name}: the name {host!r} is not known here ({error})"
        return problem(what, "check its spelling, or use the IP address")
    except ConnectionRefusedError:
        return warning(
            f"{name}: the machine answers, and no program listens on port {port}",
            "the LLM service lives only while a run does: ask again during one, or start it first",
        )
    except TimeoutError:
        do = f"check that the machine is on, and that a firewall lets TCP port {port} through"
        return problem(f"{name}: no answer in {SECONDS:.0f} s", do)
    except OSError as error:
        what = f"{name} cannot be reached: {error.strerror or error}"
        return problem(what, "check the way from this network to that one (VPN, routes, firewall)")
    return None


def speaks_tls(host: str, port: int) -> bool:
    """Whether a TLS handshake gets an answer in TLS, whoever it is from."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        _greet(context, host, port)
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)  # it refuses this handshake, in TLS
    except OSError:
        return False
    return True


def _verified(host: str, port: int, ca: bytes, ca_key: str) -> Finding:
    """Whether the certificate of the service is one that the CA has signed."""
    try:
        version = _greet(trusting(ca), host, port)
    except ssl.SSLCertVerificationError as error:
        return distrust(error, host, ca_key)
    except TimeoutError:
        return problem(f"accepts connections, and no TLS answer in {SECONDS:.0f} s", OTHER_PORT)
    except OSError as error:  # SSL's own among them
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        return problem(
            f"does not speak TLS ({reason}), and a client that has a CA speaks nothing else",
            "set llm.tls-cert and llm.tls-key at the server, or check the port",
        )
    return ok(f"{version}, with a certificate signed by the CA in {ca_key}")


def _greet(context: ssl.SSLContext, host: str, port: int) -> str:
    """Shake hands and hang up; returns the version of TLS."""
    with socket.create_connection((host, port), timeout=SECONDS) as raw:
        with context.wrap_socket(raw, server_hostname=host) as secured:
            return secured.version() or "TLS"


def _speaks_http(host: str, port: int) -> bool:
    """Whether a request without TLS gets an answer in HTTP, 1 or 2."""
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as raw:
            raw.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return raw.recv(5) == b"HTTP/"
    except OSError:
        return False


def _called(text: str, ca: bytes | None, name: str) -> Finding:
    """Call the service without a token: a run's refuses that, which tells it from others."""
    import grpc

    from fednano_flwr.exchange.protocol import PROTOCOL_VERSION
    from fednano_flwr.exchange.wire import fednano_pb2 as pb
    from fednano_flwr.exchange.wire.connection import Session

    call = pb.Call(describe=pb.DescribeRequest(header=pb.Header(protocol=PROTOCOL_VERSION)))
    with open_channel(text, ca) as channel, closing(Session(channel)) as session:
        try:
            answer = pb.Answer.FromString(session.ask(call.SerializeToString(), SECONDS))
        except grpc.RpcError as error:
            code, details = error.code(), str(error.details())  # type: ignore[attr-defined]
        else:
            model = answer.describe.model
            what = f"{name} answers without a token (it hosts {model}): a run's asks for one"
            return problem(what, "find out who started it: whoever reaches the port can use it")
    if code is grpc.StatusCode.UNAUTHENTICATED and details.startswith(NO_TOKEN):
        return ok(f"{name} is FedNano's, and refuses a call without a token as it should")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return warning(f"{name} has all the clients it takes ({details})", "raise llm.max-clients")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return problem(f"{name} accepts connections, and no gRPC answer ({details})", OTHER_PORT)
    return problem(f"{name} speaks gRPC and is not FedNano's ({code.name}: {details})", OTHER_PORT)


def _listed(named: dict[str, str]) -> str:
    return ", ".join(f"{key} = {url}" for key, url in named.items())
