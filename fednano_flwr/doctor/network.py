"""Whether the server's ports can be reached from here, and who answers there."""

from __future__ import annotations

import socket
import ssl

from fednano_flwr.config import address_to_dial, is_loopback
from fednano_flwr.config.proxies import (
    HTTP,
    LOOPBACK,
    named_proxies,
    open_channel,
    proxies_in_words,
    proxy_of,
    spares,
)
from fednano_flwr.doctor import trust
from fednano_flwr.doctor.finding import Finding, ok, problem, warning

SECONDS = 5.0
"""That a connection, a handshake and a call may take each."""
NO_TOKEN = "no token"
ONLY_IN_A_RUN = (
    "the LLM service lives only while a run does: ask again during one, or start it first"
)


def check_llm(text: str, ca: bytes | None, ca_key: str) -> list[Finding]:
    """Whether a FedNano LLM service answers at `host:port`, and is the one that `ca` vouches for.

    Args:
        ca: PEM of what clients trust; None where they speak without TLS.
        ca_key: that names its file.
    """
    host, port = address_to_dial(text)
    name = f"LLM service at {text}"
    if proxy := proxy_of(text, ca):
        return [ok(f"{name}: is asked through the proxy of {proxy}"), _called(text, ca, name)]
    if (nothing := _nothing(host, port, name)) is not None:
        return [nothing]
    findings = [ok(f"{name}: something listens there")]
    if ca is not None:
        found = _verified(host, port, ca, ca_key)
        findings.append(Finding(found.level, f"{name}: {found.what}", found.do))
        if found.level != "ok":
            return findings
    elif speaks_tls(host, port):
        findings.append(
            problem(
                f"{name} speaks TLS, and no CA is known here to check it with",
                "set ca-cert in the node config, or exchange.ca-cert, to the file of the CA's "
                "certificate",
            )
        )
        return findings
    elif not is_loopback(host):
        findings.append(
            warning(
                f"{name} speaks no TLS: everyone on the way can read tokens, prompts and answers",
                "set llm.tls-cert and llm.tls-key at the server, and ca-cert here",
            )
        )
    return [*findings, _called(text, ca, name)]


def check_superlink(text: str) -> list[Finding]:
    """Whether a SuperLink's port can be reached, and whether it speaks TLS."""
    host, port = address_to_dial(text)
    name = f"SuperLink at {text}"
    named = {key: url for key, url in named_proxies().items() if key.lower() in HTTP}
    if named and not spares(host):
        return [
            warning(
                f"{name}: SuperNodes reach it through the proxy of {_listed(named)}, which was not "
                "tried; without TLS that proxy reads adapters and tokens",
                f"add {host} to no_proxy, unless the proxy is the only way there and it has TLS",
            )
        ]
    if (nothing := _nothing(host, port, name, only_in_a_run=False)) is not None:
        return [nothing]
    if speaks_tls(host, port):
        return [
            ok(f"{name}: speaks TLS; SuperNodes take --root-certificates with its CA's certificate")
        ]
    if not _speaks_http(host, port):
        return [
            problem(
                f"{name}: something listens there, and answers neither TLS nor HTTP",
                "see whether the port is the one that flower-superlink was given as --port",
            )
        ]
    if is_loopback(host):
        return [ok(f"{name}: answers, without TLS; SuperNodes take --insecure")]
    return [
        warning(
            f"{name}: answers, without TLS: everyone on the way can read adapters and tokens",
            "start flower-superlink with --ssl-certfile and --ssl-keyfile, SuperNodes with "
            "--root-certificates",
        )
    ]


def _nothing(host: str, port: int, name: str, only_in_a_run: bool = True) -> Finding | None:
    """Why there is no connection to be had; None where there is.

    Args:
        only_in_a_run: that nothing listens there is no more than a warning.
    """
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except (socket.gaierror, UnicodeError) as error:  # the latter of what cannot be a name
        return problem(
            f"{name}: the name {host!r} is not known here ({error})",
            "see whether it is spelt right, or use the IP address",
        )
    except ConnectionRefusedError:
        nobody = f"{name}: the machine answers, and nothing listens on port {port}"
        if only_in_a_run:
            return warning(nobody, ONLY_IN_A_RUN)
        return problem(
            nobody, "start flower-superlink there, with --host 0.0.0.0 for clients elsewhere"
        )
    except TimeoutError:
        return problem(
            f"{name}: no answer in {SECONDS:.0f} s",
            f"see whether the machine is on, and whether a firewall lets TCP port {port} through",
        )
    except OSError as error:
        return problem(
            f"{name}: cannot be reached: {error.strerror or error}",
            "see whether there is a way from this network to that one (VPN, routes, firewall)",
        )
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
    """Whether who answers is one that the CA vouches for."""
    try:
        version = _greet(trust.trusting(ca), host, port)
    except ssl.SSLCertVerificationError as error:
        return trust.distrust(error, host, ca_key)
    except TimeoutError:
        return problem(
            f"it takes connections and does not answer TLS in {SECONDS:.0f} s",
            "see whether the port is the one of llm.address",
        )
    except OSError as error:  # SSL's own among them
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        return problem(
            f"it does not speak TLS ({reason}), and this client, having a CA, speaks nothing else",
            "set llm.tls-cert and llm.tls-key at the server, or see whether the port is right",
        )
    return ok(f"{version}, with a certificate that {ca_key} vouches for")


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
    """Call the service without a token: a run's refuses that, and says so."""
    import grpc

    from fednano_flwr.exchange.protocol import PROTOCOL_VERSION
    from fednano_flwr.exchange.wire import fednano_pb2 as pb
    from fednano_flwr.exchange.wire.fednano_pb2_grpc import LLMStub

    request = pb.DescribeRequest(header=pb.Header(protocol=PROTOCOL_VERSION))
    with open_channel(text, ca) as channel:
        try:
            reply = LLMStub(channel).Describe(request, timeout=SECONDS)
        except grpc.RpcError as error:
            return _meaning(error.code(), str(error.details()), name)  # type: ignore[attr-defined]
    return problem(
        f"{name} answers without a token (it hosts {reply.model}): a run's asks for one",
        "see who started it: whoever reaches the port can use it",
    )


def _meaning(code: object, details: str, name: str) -> Finding:
    """What the answer to a call without a token says of who gave it."""
    import grpc

    if code is grpc.StatusCode.UNAUTHENTICATED and details.startswith(NO_TOKEN):
        return ok(f"{name}: is FedNano's, and refuses a call without a token as it should")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return warning(
            f"{name}: has as many clients as it takes ({details})", "raise llm.max-clients"
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return problem(
            f"{name}: takes connections and does not answer gRPC ({details})",
            "see whether the port is the one of llm.address",
        )
    label = getattr(code, "name", code)
    return problem(
        f"{name}: speaks gRPC and is not FedNano's ({label}: {details})",
        "see whether the port is the one of llm.address",
    )


def check_proxies(spared: bool) -> list[Finding]:
    """Whether what is on this machine is reached without a proxy, and which one others take.

    Args:
        spared: whoever starts Flower's programs sees to it that this machine's addresses are.

    Raises:
        ConfigError: one of the proxies cannot be used.
    """
    words = proxies_in_words()
    missing = [name for name in LOOPBACK if not spares(name)]
    if words and missing and not spared:
        return [
            problem(
                f"{_listed(named_proxies())}, and no_proxy lacks {', '.join(missing)}: Flower's "
                "programs on this machine reach one another through that proxy, if at all",
                f"export no_proxy={','.join(LOOPBACK)} where they are started",
            )
        ]
    return [ok(words)] if words else []


def _listed(named: dict[str, str]) -> str:
    return ", ".join(f"{key} = {url}" for key, url in named.items())
