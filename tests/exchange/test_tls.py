"""The LLM service with TLS: what is refused before it starts, and what clients refuse."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.config import ConfigError, LLMConfig, RunConfig
from fednano_flwr.exchange.errors import HostRefusedError, HostUnreachableError
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import Identity, read_ca, read_identity
from fednano_flwr.llm.host import FrozenLLM
from tests.batches import answered_at_the_end as batch
from tests.certificates import Certificate, authority, certificate
from tests.exchange.conftest import same_bits
from tests.exchange.stand_in import StandIn

Configured = Callable[[tuple[str, str]], LLMConfig]


@pytest.fixture(scope="module")
def ca() -> Certificate:
    return authority()


@pytest.fixture
def configured(defaults: dict[str, Any]) -> Configured:
    def llm(paths: tuple[str, str]) -> LLMConfig:
        return RunConfig.parse({**defaults, "llm.tls-cert": paths[0], "llm.tls-key": paths[1]}).llm

    return llm


@pytest.fixture
def address(service: StandIn, ca: Certificate) -> Iterator[str]:
    own = certificate(ca)
    with serve(service, identity=Identity(own.key_pem(), own.pem)) as address:
        yield address


def test_a_client_that_trusts_the_ca_gets_the_plain_services_numbers(
    host: FrozenLLM, ca: Certificate, configured: Configured, tmp_path: Path
) -> None:
    identity = read_identity(configured(certificate(ca).write(tmp_path)))
    tokens = Tokens(1)
    with serve(host, tokens=tokens, identity=identity) as address, tokens.open(0, "train") as token:
        caller = Caller(1, 7, 0, "train", token(7))
        with RemoteLLM(address, caller, ca=ca.pem) as remote:
            assert same_bits(remote.step(*batch(0)), host.step(*batch(0)))
        with RemoteLLM(address, ca=ca.pem) as nobody:
            with pytest.raises(HostRefusedError, match="no token"):
                nobody.step(*batch(0))


def refused(remote: RemoteLLM) -> str:
    """Why, said at once though there is a minute for retries."""
    started = time.monotonic()
    with remote, pytest.raises(HostRefusedError) as refusal:
        remote.describe()
    assert time.monotonic() - started < 10 and remote.traffic.retries == 0
    return str(refusal.value)


def test_a_service_of_another_ca_is_refused_with_the_keys_to_look_at(address: str) -> None:
    why = refused(RemoteLLM(address, ca=authority("another").pem))
    assert "llm.tls-cert" in why and "exchange.ca-cert" in why and "vouches for" in why
    assert "no TLS" in refused(RemoteLLM(address, ca=authority("test CA").pem))  # same name


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"address": "10.0.0.9"}, "for another address"),
        ({"start": -2, "end": -1}, "certificate has expired"),
        (None, "speaks no TLS"),  # a client that wants TLS never falls back
    ],
)
def test_a_service_that_cannot_show_who_it_is_is_refused_by_clients(
    service: StandIn, ca: Certificate, how: dict[str, Any] | None, why: str
) -> None:
    own = None if how is None else certificate(ca, **how)
    identity = own and Identity(own.key_pem(), own.pem)
    with serve(service, identity=identity) as address:
        assert why in refused(RemoteLLM(address, ca=ca.pem))


def test_a_plain_client_is_told_that_the_service_may_speak_tls(address: str) -> None:
    with RemoteLLM(address, retry_seconds=0.3) as remote:
        with pytest.raises(HostUnreachableError, match=r"speaks TLS.*exchange\.ca-cert"):
            remote.describe()


def test_without_files_there_is_no_identity_and_none_shows_its_key(
    configured: Configured, ca: Certificate
) -> None:
    assert read_identity(configured(("", ""))) is None
    assert "PRIVATE" not in repr(Identity(ca.key_pem(), ca.pem))


Spoil = Callable[[Certificate, Path, Path], object]
SPOILT: dict[str, tuple[str, Spoil, str]] = {
    "no certificate file": ("llm.tls-cert", lambda ca, c, k: c.unlink(), "cannot be read: No such"),
    "no key file": ("llm.tls-key", lambda ca, c, k: k.unlink(), "cannot be read: No such"),
    "a folder": ("llm.tls-key", lambda ca, c, k: (k.unlink(), k.mkdir()), "cannot be read"),
    "no PEM": ("llm.tls-cert", lambda ca, c, k: c.write_text("?"), "holds no PEM certificate"),
    "a key as certificate": (
        "llm.tls-cert",
        lambda ca, c, k: c.write_bytes(k.read_bytes()),
        "holds no PEM certificate",
    ),
    "no key": ("llm.tls-key", lambda ca, c, k: k.write_text("?"), "no unencrypted PEM private key"),
    "a locked key": (
        "llm.tls-key",
        lambda ca, c, k: k.write_bytes(ca.key_pem(b"secret")),
        "no unencrypted PEM private key",
    ),
    "another key": (
        "llm.tls-key",
        lambda ca, c, k: k.write_bytes(ca.key_pem()),
        "is not the key of the certificate llm.tls-cert",
    ),
    "expired": (
        "llm.tls-cert",
        lambda ca, c, k: certificate(ca, start=-2, end=-1).write(c.parent),
        r"expired on \d{4}-",
    ),
    "not yet valid": (
        "llm.tls-cert",
        lambda ca, c, k: certificate(ca, start=1, end=2).write(c.parent),
        r"is not valid before \d{4}-",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_cannot_be_used_is_refused_with_its_key_and_path(
    ca: Certificate, configured: Configured, tmp_path: Path, case: str
) -> None:
    name, spoil, reason = SPOILT[case]
    paths = certificate(ca).write(tmp_path)
    assert read_identity(configured(paths)) is not None
    spoil(ca, Path(paths[0]), Path(paths[1]))
    with pytest.raises(ConfigError, match=reason) as refusal:
        read_identity(configured(paths))
    path = paths[0] if name == "llm.tls-cert" else paths[1]
    assert str(refusal.value).startswith(f"{name} = {path!r}: ")


def test_a_ca_file_is_checked_as_well(ca: Certificate, tmp_path: Path) -> None:
    path, _ = ca.write(tmp_path)
    assert read_ca("exchange.ca-cert", path) == ca.pem
    Path(path).write_text("?")
    with pytest.raises(ConfigError, match=r"^exchange\.ca-cert = .*holds no PEM certificate"):
        read_ca("exchange.ca-cert", path)
