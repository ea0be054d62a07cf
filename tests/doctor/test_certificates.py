"""Certificates and keys that clients will not trust, or that others can read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.doctor.certificates import check_ca, check_clock, check_service
from tests.certificates import Certificate, authority, certificate
from tests.doctor.found import levels, only, well

Configured = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def ca() -> Certificate:
    return authority(end=400)


@pytest.fixture
def configured(config: Configured, tmp_path: Path, ca: Certificate) -> Configured:
    """A server's config with a certificate, its key (its owner's alone) and the clients' CA."""

    def make(own: Certificate, trusted: Certificate = ca, **changes: object) -> RunConfig:
        cert, key = own.write(tmp_path / "own")
        Path(key).chmod(0o600)
        keys = {
            "llm__tls_cert": cert,
            "llm__tls_key": key,
            "exchange__ca_cert": trusted.write(tmp_path / "ca")[0],
        }
        return config(**{**keys, **changes})

    return make


def test_a_good_certificate_is_well(configured: Configured, ca: Certificate) -> None:
    findings = check_service(configured(certificate(ca, end=200)))
    assert well(findings)
    assert "will trust llm.tls-cert at 127.0.0.1" in findings[-1].what


@pytest.mark.parametrize(
    ("start", "end", "says"), [(-2, -1, "expired on"), (1, 2, "is not valid before")]
)
def test_a_certificate_that_is_not_valid_today_is_refused(
    configured: Configured, ca: Certificate, start: float, end: float, says: str
) -> None:
    with pytest.raises(ConfigError, match=f"llm.tls-cert = .*{says}"):
        check_service(configured(certificate(ca, start=start, end=end)))


def test_a_certificate_that_expires_soon_is_a_warning(
    configured: Configured, ca: Certificate
) -> None:
    found = only(check_service(configured(certificate(ca, end=29.5))), "warning")
    assert "llm.tls-cert" in found.what and "expires in 29 days" in found.what
    assert well(check_service(configured(certificate(ca, end=31))))


def test_a_key_of_another_certificate_is_refused(
    configured: Configured, ca: Certificate, tmp_path: Path
) -> None:
    other = certificate(ca).write(tmp_path / "other")[1]
    with pytest.raises(ConfigError, match="is not the key of the certificate"):
        check_service(configured(certificate(ca), llm__tls_key=other))


def test_a_key_that_others_can_read_is_a_warning(configured: Configured, ca: Certificate) -> None:
    asked = configured(certificate(ca, end=200))
    Path(asked.llm.tls_key).chmod(0o640)
    found = only(check_service(asked), "warning")
    assert "mode 0640" in found.what and found.do == f"chmod 600 {asked.llm.tls_key}"


def test_clients_do_not_trust_another_ca(configured: Configured, ca: Certificate) -> None:
    for other in (authority("another", end=400), authority(end=400)):  # by name, by key
        found = only(check_service(configured(certificate(ca, end=200), other)), "problem")
        assert "vouches for" in found.what and "exchange.ca-cert" in found.do


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({"llm__address": "10.0.0.8:9000"}, "10.0.0.8"),
        ({"llm__address": "[::1]:9000"}, "::1"),
        ({"llm__address": "llm.example.org:9000"}, "llm.example.org"),
        ({"llm__bind": "localhost"}, "localhost"),
    ],
)
def test_clients_do_not_trust_a_certificate_for_another_address(
    configured: Configured, ca: Certificate, changes: dict[str, str], host: str
) -> None:
    asked = configured(certificate(ca, end=200), **changes)
    found = only(check_service(asked), "problem")
    assert f"for another address than {host!r}" in found.what and "subjectAltName" in found.do
    if host == "10.0.0.8":
        assert well(check_service(configured(certificate(ca, host, end=200), **changes)))


def test_without_a_ca_trust_cannot_be_tried(configured: Configured, ca: Certificate) -> None:
    asked = configured(certificate(ca, end=200), exchange__ca_cert="")
    assert "exchange.ca-cert is not set" in only(check_service(asked), "warning").what


def test_a_clients_ca_is_looked_at(ca: Certificate, tmp_path: Path) -> None:
    key = "the node config's ca-cert"
    assert well(check_ca(key, ca.write(tmp_path / "good")[0]))
    soon = authority(end=3.5).write(tmp_path / "soon")[0]
    assert "expires in 3 days" in only(check_ca(key, soon), "warning").what
    assert "without TLS" in only(check_ca(key, ""), "ok").what
    with pytest.raises(ConfigError, match=f"{key} = .*cannot be read"):
        check_ca(key, str(tmp_path / "gone.pem"))


def test_a_clock_of_long_ago_is_a_problem() -> None:
    assert "1970-01-02" in only(check_clock(86_400), "problem").what
    assert levels(check_clock(time.time())) == ["ok"]
