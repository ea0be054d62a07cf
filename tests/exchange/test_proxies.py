"""With a proxy in the environment: what is on this machine, or has no TLS, is asked without it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from fednano_flwr.config import ConfigError, proxies
from fednano_flwr.config.proxies import (
    GRPC,
    HTTP,
    named_proxies,
    proxies_in_words,
    proxy_of,
    spare_this_machine,
    spares,
)
from fednano_flwr.exchange.errors import HostUnreachableError
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import Identity
from tests.certificates import authority, certificate
from tests.exchange.stand_in import StandIn

VARIABLES = {*GRPC, *HTTP, "no_proxy", "no_grpc_proxy"}
TOKEN = "a-token-that-nobody-may-see"
ELSEWHERE = "192.0.2.7:9093"


class Noting:
    """A proxy that grants nothing and keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                with self._server.accept()[0] as caller:
                    self.seen.append(caller.recv(65536))

    def close(self) -> None:
        self._server.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        for spelt in (name, name.upper()):
            # Set first, so that what the tested code sets is undone as well.
            monkeypatch.setenv(spelt, "")
            monkeypatch.delenv(spelt)


@pytest.fixture
def proxy() -> Iterator[Noting]:
    noting = Noting()
    yield noting
    noting.close()


@pytest.mark.parametrize("variable", GRPC)
@pytest.mark.parametrize("tls", [False, True])
def test_a_service_on_this_machine_is_asked_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: Noting, service: StandIn, variable: str, tls: bool
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    ca = authority()
    own = certificate(ca, "127.0.0.1")
    identity = Identity(own.key_pem(), own.pem) if tls else None
    with (
        serve(service, identity=identity) as address,
        RemoteLLM(address, Caller(token=TOKEN), ca=ca.pem if tls else None) as remote,
    ):
        assert remote.describe().model == "stand-in"
    assert proxy.seen == []


def test_without_tls_not_even_another_machine_is_asked_through_it(
    monkeypatch: pytest.MonkeyPatch, proxy: Noting
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    with RemoteLLM(ELSEWHERE, Caller(token=TOKEN), timeout=0.2, retry_seconds=0.1) as remote:
        with pytest.raises(HostUnreachableError):
            remote.describe()
    assert proxy.seen == []


def test_with_tls_another_machine_is_asked_through_it_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, proxy: Noting, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:secret@"))
    ca = authority().pem
    with RemoteLLM(ELSEWHERE, Caller(token=TOKEN), timeout=0.5, retry_seconds=0.1, ca=ca) as remote:
        assert ELSEWHERE in caplog.text and "https_proxy = http://***@" in caplog.text
        with pytest.raises(HostUnreachableError, match="https_proxy"):
            remote.describe()
    assert proxy.seen and all(TOKEN.encode() not in sent for sent in proxy.seen)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("variable", "value", "host"),
    [
        ("no_proxy", "192.0.2.7", "192.0.2.7"),
        ("NO_PROXY", "192.0.2.0/24", "192.0.2.7"),
        ("no_proxy", "a.example, .example.org", "host.example.org"),
        ("no_proxy", "*", "host.example.org"),
    ],
)
def test_what_no_proxy_names_is_spared(
    monkeypatch: pytest.MonkeyPatch, proxy: Noting, variable: str, value: str, host: str
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url)
    assert proxy_of(f"{host}:1", b"ca") and not spares(host)
    monkeypatch.setenv(variable, value)
    assert spares(host) and not proxy_of(f"{host}:1", b"ca")
    assert not spares("203.0.113.1") or value == "*"


def test_this_machines_name_and_addresses_are_its_own(
    monkeypatch: pytest.MonkeyPatch, proxy: Noting
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url)
    own = {"localhost", "127.0.0.1", "[::1]", socket.gethostname()}
    own |= {f"[{a}]" if ":" in a else a for a in proxies._own_addresses()}
    assert [host for host in own if proxy_of(f"{host}:1", b"ca")] == []


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_programs_that_are_started_spare_this_machine_too(
    monkeypatch: pytest.MonkeyPatch, proxy: Noting, variable: str
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    monkeypatch.setenv("NO_PROXY", "internal.example")
    variables = dict(os.environ)
    spare_this_machine(variables)
    assert variables["no_proxy"] == variables["NO_PROXY"]
    assert {"internal.example", "127.0.0.1", "localhost", "::1"} <= set(
        variables["no_proxy"].split(",")
    )
    monkeypatch.setenv("no_proxy", variables["no_proxy"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"http://{host}:{server.getsockname()[1]}", timeout=0.1)
    assert proxy.seen == []
    before = dict(variables)
    spare_this_machine(variables)
    assert variables == before


def test_grpcs_own_variable_spares_this_machine_too() -> None:
    variables = {"http_proxy": "http://p:1", "no_grpc_proxy": "internal.example"}
    spare_this_machine(variables)
    listed = variables["no_grpc_proxy"].split(",")
    assert listed[0] == "internal.example" and {"127.0.0.1", "localhost"} <= set(listed)


def test_a_star_that_spares_all_machines_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"http_proxy": "http://p:1", "no_proxy": "*"}
    spare_this_machine(variables)
    assert variables["no_proxy"] == "*" and "127.0.0.1" in variables["no_grpc_proxy"]
    for name, value in {"https_proxy": "http://p:1", "no_grpc_proxy": "elsewhere.example"}.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("elsewhere.example:1", b"ca") == "" != proxy_of("other.example:1", b"ca")


def test_without_a_proxy_the_environment_stays_as_it_is() -> None:
    variables = {"PATH": "", "no_proxy": "a"}
    spare_this_machine(variables)
    assert variables == {"PATH": "", "no_proxy": "a"} and proxies_in_words() == ""


def test_which_proxies_are_used_is_said_without_their_passwords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy.example:3128")
    assert named_proxies() == {"HTTP_PROXY": "http://***@proxy.example:3128"}
    assert "HTTP_PROXY = http://***@proxy.example:3128" in proxies_in_words()


@pytest.mark.parametrize("value", ["socks4://127.0.0.1:9", "gopher://127.0.0.1:9"])
def test_a_proxy_that_flower_cannot_use_is_refused_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("all_proxy", value)
    with pytest.raises(ConfigError, match=f"all_proxy = {value}"):
        proxies_in_words()


@pytest.mark.slow
def test_a_command_refuses_it_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks4://127.0.0.1:9")
    command = [sys.executable, "-m", "fednano_flwr.cli", "run"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and "all_proxy" in ended.stderr and "Traceback" not in ended.stderr
