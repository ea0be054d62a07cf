"""deploy/make_keys.py: what it makes, who may read it, and what it refuses."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509 import verification

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "deploy" / "make_keys.py"


@pytest.fixture(scope="module")
def make_keys() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_keys", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def keys(make_keys: ModuleType, tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    hosts = ["server.example.org", "192.0.2.7", "2001:db8::7"]
    arguments = ["new", str(folder), "--host", *hosts, "--node", "client-0", "client-1"]
    assert make_keys.main(arguments) == 0
    return folder


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def verify(keys: Path, host: str, at: datetime | None = None) -> None:
    """As a client does that trusts ca.crt and dials `host`."""
    store = verification.Store([certificate(keys / "ca.crt")])
    try:
        subject: x509.GeneralName = x509.IPAddress(ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    builder = verification.PolicyBuilder().store(store).time(at or datetime.now(UTC))
    builder.build_server_verifier(subject).verify(certificate(keys / "server.crt"), [])  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_certificate_is_good_for_the_given_hosts_and_no_others(keys: Path) -> None:
    for host in ("server.example.org", "192.0.2.7", "2001:db8::7"):
        verify(keys, host)
    for host in ("localhost", "127.0.0.1", "192.0.2.8", "example.org"):
        with pytest.raises(verification.VerificationError):
            verify(keys, host)


def test_loopback_is_in_it_where_it_is_asked_for(make_keys: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert make_keys.main(["new", str(folder), "--host", "127.0.0.1", "--loopback"]) == 0
    hosts = make_keys.hosts_of(certificate(folder / "server.crt"))
    assert hosts == ["127.0.0.1", "localhost", "::1"]


def test_it_expires_after_a_year_and_its_ca_after_ten(keys: Path) -> None:
    now = datetime.now(UTC)
    verify(keys, "192.0.2.7", now + timedelta(days=364))
    with pytest.raises(verification.VerificationError):
        verify(keys, "192.0.2.7", now + timedelta(days=366))
    years = (certificate(keys / "ca.crt").not_valid_after_utc - now) / timedelta(days=365)
    assert years == pytest.approx(10, abs=0.01)


def test_a_tls_handshake_succeeds_with_its_ca_and_fails_with_another(
    make_keys: ModuleType, keys: Path, tmp_path: Path
) -> None:
    assert make_keys.main(["new", str(tmp_path / "foreign"), "--host", "192.0.2.7"]) == 0
    shake_hands(keys, keys / "ca.crt", "server.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(keys, tmp_path / "foreign" / "ca.crt", "server.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(keys, keys / "ca.crt", "another.example.org")


def shake_hands(keys: Path, ca: Path, host: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "server.crt", keys / "server.key")
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(there, server_side=True).close()
        except OSError:  # the client did not trust us
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ssl.create_default_context(cafile=ca).wrap_socket(here, server_hostname=host).close()
    finally:
        here.close()
        thread.join(10)


def test_the_ca_vouches_for_no_other_ca(keys: Path) -> None:
    ca = certificate(keys / "ca.crt").extensions
    constraints = ca.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(True, 0)
    server = certificate(keys / "server.crt").extensions
    assert not server.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_secret_files_are_their_owners_alone(keys: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()}
    open_to_all = {"ca.crt": 0o644, "server.crt": 0o644}
    open_to_all |= {"client-0.pub": 0o644, "client-1.pub": 0o644}
    secret = dict.fromkeys(("ca.key", "server.key", "client-0", "client-1"), 0o600)
    assert modes == open_to_all | secret
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_a_nodes_pair_is_what_flower_takes(keys: Path) -> None:
    private = load_ssh_private_key((keys / "client-0").read_bytes(), password=None)
    public = load_ssh_public_key((keys / "client-0.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name == "secp384r1"
    assert private.public_key() == public
    assert (keys / "client-0.pub").read_bytes() != (keys / "client-1.pub").read_bytes()


def test_nothing_is_overwritten(
    make_keys: ModuleType, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(keys)
    assert make_keys.main(["new", str(keys), "--host", "192.0.2.7"]) == 2
    assert make_keys.main(["add", str(keys), "--node", "client-2", "client-1"]) == 2
    assert "client-1 is there already" in capsys.readouterr().err
    assert contents(keys) == before


def test_renewing_keeps_ca_names_and_the_earlier_files(
    make_keys: ModuleType, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(keys)
    earlier = certificate(keys / "server.crt")
    assert make_keys.main(["renew", str(keys), "--days", "30"]) == 0
    renewed = certificate(keys / "server.crt")
    assert make_keys.hosts_of(renewed) == make_keys.hosts_of(earlier)
    assert renewed.public_key() != earlier.public_key()
    verify(keys, "server.example.org")
    with pytest.raises(verification.VerificationError):
        verify(keys, "server.example.org", datetime.now(UTC) + timedelta(days=31))
    kept = keys / f"server-{earlier.serial_number:x}"
    assert str(kept) in capsys.readouterr().out
    assert (kept / "server.key").read_bytes() == before[str(keys / "server.key")]
    assert stat.S_IMODE((keys / "server.key").stat().st_mode) == 0o600
    assert (keys / "ca.crt").read_bytes() == before[str(keys / "ca.crt")]


def test_renewing_may_change_the_names(make_keys: ModuleType, keys: Path) -> None:
    assert make_keys.main(["renew", str(keys), "--host", "10.0.0.5"]) == 0
    verify(keys, "10.0.0.5")
    with pytest.raises(verification.VerificationError):
        verify(keys, "server.example.org")


def test_a_certificate_does_not_outlive_its_ca(
    make_keys: ModuleType, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(keys)
    assert make_keys.main(["renew", str(keys), "--days", "4000"]) == 2
    assert "--days 4000: the CA ends before" in capsys.readouterr().err
    assert contents(keys) == before


def test_another_node_needs_no_ca_key(make_keys: ModuleType, keys: Path) -> None:
    (keys / "ca.key").unlink()
    assert make_keys.main(["add", str(keys), "--node", "client-2"]) == 0
    assert (keys / "client-2.pub").is_file()
    assert make_keys.main(["renew", str(keys)]) == 2


@pytest.mark.parametrize(
    "wrong", ["server.example.org:8000", "192.0.2.300", "a b", "", "-a.org", "https://a.org"]
)
def test_a_host_that_is_none_is_refused_and_nothing_is_written(
    make_keys: ModuleType, tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_keys.main(["new", str(tmp_path / "keys"), f"--host={wrong}"]) == 2
    assert "neither a DNS name nor an IP address" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("names", [["../client"], ["ca"], ["server"], ["a.pub"], ["a", "a"]])
def test_a_nodes_name_has_to_be_a_files(
    make_keys: ModuleType, tmp_path: Path, names: list[str]
) -> None:
    folder = tmp_path / "keys"
    assert make_keys.main(["new", str(folder), "--host", "192.0.2.7", "--node", *names]) == 2
    assert not folder.exists()


def test_it_says_which_file_goes_where(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "new", str(tmp_path / "keys"), "--host", "192.0.2.7"]
    command += ["--node", "client-0"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    server, client, offline = said.splitlines()[-3:]
    assert server.startswith("server") and "server.key" in server and "client-0" not in server
    assert client.startswith("client-0") and client.endswith("ca.crt, client-0")
    assert offline.startswith("offline") and "ca.key" in offline
