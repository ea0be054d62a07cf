"""Real listeners on loopback: the service itself, and what else may be found at its address."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from fednano_flwr.config import address_to_dial
from fednano_flwr.config.proxies import GRPC, HTTP
from fednano_flwr.doctor import network
from fednano_flwr.doctor.finding import Finding
from fednano_flwr.doctor.network import check_llm, check_proxies, check_superlink
from fednano_flwr.exchange.protocol import LLMInfo
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import Identity
from fednano_flwr.exchange.wire.tokens import Tokens
from tests.certificates import Certificate, authority, certificate
from tests.doctor.found import levels, only, well

KEY = "exchange.ca-cert"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SECONDS", 0.5)


@pytest.fixture(scope="module")
def ca() -> Certificate:
    return authority()


class Describing:
    """An LLM service that only says what it is."""

    def describe(self) -> LLMInfo:
        return LLMInfo("tiny", "f", "", 48, 64, "float32", 100)


@contextmanager
def running(own: Certificate | None = None, tokens: bool = True) -> Iterator[str]:
    identity = Identity(own.key_pem(), own.pem) if own else None
    service: Any = Describing()
    with serve(service, tokens=Tokens(1) if tokens else None, identity=identity) as at:
        yield at


@contextmanager
def listener(says: bytes = b"") -> Iterator[str]:
    """A port that takes connections, says something (or nothing) and waits."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def greet() -> None:
            while True:
                try:
                    taken = stack.enter_context(server.accept()[0])
                    taken.sendall(says)
                except OSError:
                    return

        threading.Thread(target=greet, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def trouble(at: str, ca: Certificate | None) -> Finding:
    return only(check_llm(at, ca.pem if ca else None, KEY), "problem")


def test_a_runs_service_is_recognized_with_tls_and_without(ca: Certificate) -> None:
    with running(certificate(ca)) as at:
        findings = check_llm(at, ca.pem, KEY)
        assert well(findings) and "TLSv1" in findings[1].what
        assert "refuses a call without a token" in findings[2].what
    with running() as at:
        findings = check_llm(at, None, KEY)
        assert well(findings) and "refuses a call without a token" in findings[-1].what


def test_a_service_that_asks_for_no_token_is_a_problem() -> None:
    with running(tokens=False) as at:
        assert "answers without a token (it hosts tiny)" in trouble(at, None).what


def test_another_ca_another_address_and_an_old_certificate_are_told_apart(
    ca: Certificate,
) -> None:
    with running(certificate(ca)) as at:
        assert "vouches for" in trouble(at, authority("another")).what
    with running(certificate(ca, "10.0.0.9")) as at:
        assert "for another address than '127.0.0.1'" in trouble(at, ca).what
    with running(certificate(ca, start=-2, end=-1)) as at:
        assert "expired" in trouble(at, ca).what
    with running(certificate(ca, start=1, end=2)) as at:
        found = trouble(at, ca)
        assert "not valid yet" in found.what and "clock" in found.do


def test_a_service_without_tls_is_not_what_a_client_with_a_ca_wants(ca: Certificate) -> None:
    with running() as at:
        assert "does not speak TLS" in trouble(at, ca).what


def test_a_service_with_tls_needs_a_ca_here(ca: Certificate) -> None:
    with running(certificate(ca)) as at:
        found = trouble(at, None)
        assert "no CA is known here" in found.what and "ca-cert" in found.do


def test_without_tls_beyond_loopback_everyone_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "is_loopback", lambda host: False)
    with running() as at:
        assert "no TLS" in only(check_llm(at, None, KEY), "warning").what
    with http() as at:
        assert "without TLS" in only(check_superlink(at), "warning").what


def test_a_listener_that_is_no_service_is_not_taken_for_one(ca: Certificate) -> None:
    with listener(b"220 mail.example.org\r\n") as at:
        assert "does not answer gRPC" in trouble(at, None).what
        assert "does not speak TLS" in trouble(at, ca).what
    with listener() as at:
        assert "does not answer TLS" in trouble(at, ca).what


def test_another_grpc_service_is_not_taken_for_ours() -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert "is not FedNano's (UNIMPLEMENTED" in trouble(f"127.0.0.1:{port}", None).what
    finally:
        server.stop(None)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{closed_port()}")


@pytest.mark.usefixtures("proxied")
def test_with_a_proxy_this_machine_is_still_asked_without_it(ca: Certificate) -> None:
    own = certificate(ca, "127.0.0.1")
    with running(own) as at:
        assert well(check_llm(at, ca.pem, KEY))


@pytest.mark.usefixtures("proxied")
def test_it_is_said_where_a_proxy_is_on_the_way(ca: Certificate) -> None:
    found = check_llm("192.0.2.7:1", ca.pem, KEY)
    assert "https_proxy" in found[0].what and levels(found) == ["ok", "problem"]
    assert "http_proxy" in only(check_superlink("192.0.2.7:1"), "warning").what


@pytest.mark.usefixtures("proxied")
def test_flowers_programs_need_no_proxy_where_fednano_run_does_not_start_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "https_proxy" in only(check_proxies(spared=True), "ok").what
    found = only(check_proxies(spared=False), "problem")
    assert "127.0.0.1" in found.what and "no_proxy=localhost,127.0.0.1,::1" in found.do
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1,::1")
    assert well(check_proxies(spared=False))


def test_without_a_proxy_nothing_is_said_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*GRPC, *HTTP}:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert check_proxies(spared=False) == []


def test_where_nothing_listens_a_run_may_not_have_begun(ca: Certificate) -> None:
    at = closed_port()
    found = only(check_llm(at, ca.pem, KEY), "warning")
    assert f"LLM service at {at}" in found.what and "lives only while a run does" in found.do
    assert "start flower-superlink" in only(check_superlink(at), "problem").do


def test_a_name_that_nobody_has_and_what_cannot_be_a_name_are_problems() -> None:
    for host in ("no-such-host.invalid", "no..name"):
        assert f"{host!r} is not known here" in trouble(f"{host}:9000", None).what


def test_a_port_that_answers_nothing_at_all_names_the_firewall() -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # fills the queue of connections, so that the next is never answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        started = time.monotonic()
        found = trouble(f"127.0.0.1:{full.getsockname()[1]}", None)
        assert "no answer" in found.what and "firewall" in found.do
        assert time.monotonic() - started < 5


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def http() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_superlink_is_found_with_tls_and_without(ca: Certificate, tmp_path: Path) -> None:
    with http() as at:
        assert "--insecure" in only(check_superlink(at), "ok").what
    with running(certificate(ca)) as at:  # whoever it is, it speaks TLS
        assert "--root-certificates" in only(check_superlink(at), "ok").what
    with listener(b"220 mail.example.org\r\n") as at:
        assert "neither TLS nor HTTP" in only(check_superlink(at), "problem").what


@pytest.mark.parametrize("text", ["host", "host:", ":9000", "host:0", "host:70000", "::1:9000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give HOST:PORT|put an IPv6 address in brackets"):
        address_to_dial(text)


def test_an_ipv6_address_is_taken_out_of_its_brackets() -> None:
    assert address_to_dial("[::1]:9000") == ("::1", 9000)
    assert levels(check_llm(f"[::1]:{closed_port().rpartition(':')[2]}", None, KEY)) != ["ok"]
