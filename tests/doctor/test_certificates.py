"""Certificates that clients will not trust, or that expire soon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fednano_flwr.config import ConfigError, LLMConfig, RunConfig
from fednano_flwr.doctor.certificates import check_dates, check_trust
from tests.certificates import Certificate, authority, certificate
from tests.doctor.found import only, well

Configured = Callable[..., tuple[LLMConfig, str]]


@pytest.fixture(scope="module")
def ca() -> Certificate:
    return authority(end=400)


@pytest.fixture
def configured(config: Callable[..., RunConfig], tmp_path: Path, ca: Certificate) -> Configured:
    """A server's config with a certificate, and the file of the clients' CA."""

    def make(
        own: Certificate, trusted: Certificate = ca, **changes: object
    ) -> tuple[LLMConfig, str]:
        cert, key = own.write(tmp_path / "own")
        asked = config(llm__tls_cert=cert, llm__tls_key=key, **changes)
        return asked.llm, trusted.write(tmp_path / "ca")[0]

    return make


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({}, ""),
        ({"llm__address": "10.0.0.8:9000"}, "10.0.0.8"),
        ({"llm__address": "[::1]:9000"}, "::1"),
        ({"llm__address": "llm.example.org:9000"}, "llm.example.org"),
        ({"llm__bind": "localhost"}, "localhost"),
    ],
)
def test_clients_trust_a_certificate_for_the_address_that_they_dial_only(
    configured: Configured, ca: Certificate, changes: dict[str, str], host: str
) -> None:
    findings = check_trust(*configured(certificate(ca, end=200), **changes))
    if not host:
        assert "at 127.0.0.1" in only(findings, "ok").what
        return
    found = only(findings, "problem")
    assert f"another address than {host!r}" in found.what and "subjectAltName" in found.do
    if host == "10.0.0.8":
        assert well(check_trust(*configured(certificate(ca, host, end=200), **changes)))


def test_clients_do_not_trust_another_ca(configured: Configured, ca: Certificate) -> None:
    for other in (authority("another", end=400), authority(end=400)):  # by name, by key
        found = only(check_trust(*configured(certificate(ca, end=200), other)), "problem")
        assert "llm.tls-cert" in found.what and "exchange.ca-cert" in found.do


def test_without_a_ca_trust_is_not_tried_and_without_tls_there_is_none(
    configured: Configured, ca: Certificate, config: Callable[..., RunConfig]
) -> None:
    llm, _ = configured(certificate(ca))
    assert "exchange.ca-cert is not set" in only(check_trust(llm, ""), "warning").what
    assert check_trust(config().llm, "") == []


def test_a_certificate_that_expires_soon_is_a_warning_and_an_old_one_refused(
    ca: Certificate, tmp_path: Path
) -> None:
    def dates(days: float) -> str:
        return certificate(ca, start=-9, end=days).write(tmp_path / "own")[0]

    found = only(check_dates("llm.tls-cert", dates(29.5)), "warning")
    assert "llm.tls-cert" in found.what and "29 days" in found.what
    assert well(check_dates("llm.tls-cert", dates(31))) and check_dates("llm.tls-cert", "") == []
    with pytest.raises(ConfigError, match=r"llm\.tls-cert = .*expired"):
        check_dates("llm.tls-cert", dates(-1))
