"""Certificate authorities and certificates that live as long as a test."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key."""

    x509: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.x509.public_bytes(Encoding.PEM)

    def key_pem(self, password: bytes = b"") -> bytes:
        locked = BestAvailableEncryption(password) if password else NoEncryption()
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)

    def write(self, folder: Path) -> tuple[str, str]:
        """Paths of the files of certificate and key."""
        folder.mkdir(exist_ok=True)
        (folder / "cert.pem").write_bytes(self.pem)
        (folder / "key.pem").write_bytes(self.key_pem())
        return str(folder / "cert.pem"), str(folder / "key.pem")


def authority(name: str = "test CA", end: float = 1) -> Certificate:
    """A CA that signs itself, valid until `end` days from now."""
    return _signed(name, None, x509.BasicConstraints(True, None), 0, end)


def certificate(
    ca: Certificate, address: str = "127.0.0.1", start: float = -1, end: float = 1
) -> Certificate:
    """A service's certificate, valid from `start` to `end` days from now."""
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    return _signed(address, ca, names, start, end)


def _signed(
    name: str, ca: Certificate | None, extension: x509.ExtensionType, start: float, end: float
) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.x509.subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=start))
        .not_valid_after(now + timedelta(days=end))
        .add_extension(extension, critical=False)
    )
    return Certificate(builder.sign(ca.key if ca else key, hashes.SHA256()), key)
