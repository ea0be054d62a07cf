"""Real listeners on loopback: the service itself, and what else may be found at its address."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.config.proxies import GRPC, HTTP
from fednano_flwr.doctor import network
from fednano_flwr.doctor.finding import Finding
from fednano_flwr.doctor.network import check_proxies, check_superlink
from fednano_flwr.exchange.protocol import LLMInfo
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import Identity
from tests.certificates import Certificate, authority, certificate
from tests.doctor.found import only, well

KEY = "exchange.ca-cert"
Configured = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SECONDS", 0.5)


@pytest.fixture(scope="module")
def ca() -> Certificate:
    return authority()


@pytest.fixture(scope="module")
def trusted(ca: Certificate, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of `ca`."""
    return ca.write(tmp_path_factory.mktemp("ca"))[0]


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


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def check_llm(at: str, ca_path: str = "") -> list[Finding]:
    return network.check_llm(at, KEY, ca_path)


def trouble(at: str, ca_path: str = "") -> str:
    found = only(check_llm(at, ca_path), "problem")
    return f"{found.what} → {found.do}"


def test_a_runs_service_is_recognized_with_tls_and_without(ca: Certificate, trusted: str) -> None:
    with running(certificate(ca)) as at:
        with_tls, without = check_llm(at, trusted), trouble(at)
    assert well(with_tls) and "TLSv1" in with_tls[0].what and "token" in with_tls[1].what
    assert "no CA is known here" in without and "ca-cert" in without
    with running() as at:
        plain, asks = check_llm(at), trouble(at, trusted)
    assert well(plain) and "without a token" in plain[1].what
    assert "does not speak TLS" in asks
    with running(tokens=False) as at:
        assert "answers without a token (it hosts tiny)" in trouble(at)


def test_another_ca_another_address_and_an_old_certificate_are_told_apart(
    ca: Certificate, trusted: str, tmp_path: Path
) -> None:
    other = authority("another").write(tmp_path / "other")[0]
    with running(certificate(ca)) as at:
        assert f"the CA in {KEY}" in trouble(at, other)
        gone = check_llm(at, str(tmp_path / "gone.pem"))
        assert "not tried" in only(gone, "warning").what
    for own, says in (
        (certificate(ca, "10.0.0.9"), "another address than '127.0.0.1'"),
        (certificate(ca, start=-2, end=-1), "expired"),
        (certificate(ca, start=1, end=2), "not valid yet"),
    ):
        with running(own) as at:
            assert says in trouble(at, trusted)


def test_without_tls_beyond_loopback_everyone_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "is_loopback", lambda host: False)
    with running() as at:
        assert "no TLS" in only(check_llm(at), "warning").what
    with http() as at:
        assert "without TLS" in only(check_superlink(at), "warning").what


def test_a_listener_that_is_no_service_is_not_taken_for_one(trusted: str) -> None:
    with listener(b"220 mail.example.org\r\n") as at:
        assert "no gRPC answer" in trouble(at)
        assert "does not speak TLS" in trouble(at, trusted)
        assert "neither TLS nor HTTP" in only(check_superlink(at), "problem").what
    with listener() as at:
        assert "no TLS answer" in trouble(at, trusted)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert "UNIMPLEMENTED" in trouble(f"127.0.0.1:{port}")
    finally:
        server.stop(None)


def test_a_superlink_is_found_with_tls_and_without(ca: Certificate) -> None:
    with http() as at:
        assert "--insecure" in only(check_superlink(at), "ok").what
    with running(certificate(ca)) as at:  # whoever it is, it speaks TLS
        assert "--root-certificates" in only(check_superlink(at), "ok").what


def test_where_nothing_listens_a_run_may_not_have_begun() -> None:
    at = closed_port()
    found = only(check_llm(at), "warning")
    assert f"LLM service at {at}" in found.what and "ask again during one" in found.do
    assert "start flower-superlink" in only(check_superlink(at), "problem").do
    assert not well(check_llm(f"[::1]:{at.rpartition(':')[2]}"))
    for host in ("no-such-host.invalid", "no..name"):
        assert f"{host!r} is not known here" in trouble(f"{host}:9000")


def test_a_port_that_answers_nothing_at_all_names_the_firewall() -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # fills the queue of connections, so that the next is never answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        started = time.monotonic()
        said = trouble(f"127.0.0.1:{full.getsockname()[1]}")
        assert "no answer" in said and "firewall" in said
        assert time.monotonic() - started < 5


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{closed_port()}")


@pytest.mark.usefixtures("proxied")
def test_a_proxy_is_named_for_other_machines_and_not_used_for_this_one(
    ca: Certificate, trusted: str
) -> None:
    with running(certificate(ca, "127.0.0.1")) as at:
        assert well(check_llm(at, trusted))
    through, called = check_llm("192.0.2.7:1", trusted)
    assert "https_proxy" in through.what and called.level == "problem"
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
    for name in {*GRPC, *HTTP}:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert check_proxies(spared=False) == []


def test_a_taken_port_is_named_with_how_to_find_who_has_it(config: Configured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken, metrics = config(llm__port=port).llm, config(llm__metrics=f"127.0.0.1:{port}").llm
        found = only(network.check_listening(taken), "problem")
        assert f"llm.port = {port}" in found.what and f"sport = :{port}" in found.do
        assert "llm.metrics" in only(network.check_metrics(metrics), "problem").do
    for _ in range(2):  # free, and free again
        assert well(network.check_listening(taken)) and well(network.check_metrics(metrics))
    assert network.check_metrics(config().llm) == []


@pytest.mark.parametrize(
    ("bind", "says"), [("192.0.2.77", "0.0.0.0"), ("no..name", "IP address"), ("0.0.0.0", "")]
)
def test_an_address_of_no_interface_is_a_problem_and_one_of_all_needs_tls(
    config: Configured, bind: str, says: str
) -> None:
    changes = {"llm__insecure_beyond_loopback": True, "llm__address": "198.51.100.7:9000"}
    findings = network.check_listening(config(llm__bind=bind, **changes).llm)
    levels = [finding.level for finding in findings]
    assert levels == ["problem" if says else "ok", "warning"] and "without TLS" in findings[1].what
    assert f"llm.bind = {bind!r}" in findings[0].what and says in findings[0].do
    everywhere = network.check_metrics(config(llm__metrics="0.0.0.0:0").llm)
    assert "need no token" in only(everywhere, "warning").what


@pytest.mark.parametrize(
    ("address", "port", "level", "says"),
    [
        ("198.51.100.7:9000", 9000, "", ""),
        ("no-such-host.invalid:9000", 9000, "problem", "not known"),
        ("127.0.0.1:9000", 9000, "warning", "tunnel"),
        ("198.51.100.7:9000", 0, "warning", "llm.port = 0"),
    ],
)
def test_an_address_that_clients_cannot_dial_is_found(
    config: Configured, address: str, port: int, level: str, says: str
) -> None:
    findings = network.check_address(config(llm__address=address, llm__port=port).llm)
    assert [finding.level for finding in findings] == ([level] if level else [])
    assert all(says in f"{finding.what} {finding.do}" for finding in findings)
