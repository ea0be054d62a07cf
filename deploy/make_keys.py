"""Make the keys of a federation: a CA, the server's certificate, a key pair for each node.

python deploy/make_keys.py new keys --host server.example.org --loopback --node client-0 client-1
python deploy/make_keys.py renew keys                 # the server's certificate, for the same names
python deploy/make_keys.py add keys --node client-2   # another node

Nothing is overwritten: a file that is in the way ends the command. Exits with 0 if all is written
and 2 if something cannot be used; then nothing is changed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, SERVER_DAYS = 3650, 365
CLOCKS_APART = timedelta(hours=1)  # machines whose clocks are behind may use what is new
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
Files = dict[str, bytes]
"""Contents by file name; what does not end in .crt or .pub is secret."""


class KeysError(Exception):
    """Something that was asked for cannot be made."""


@dataclass(frozen=True)
class Authority:
    """A CA's certificate and private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_authority(days: int) -> Authority:
    """A CA that vouches for servers and for no other CA."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedNano federation CA")])
    usage = _usage("key_cert_sign", "crl_sign")
    builder = (
        _builder(name, name, key.public_key(), datetime.now(UTC) + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(builder.sign(key, hashes.SHA384()), key)


def server_files(ca: Authority, hosts: Sequence[str], days: int) -> Files:
    """A new key and its certificate for these names and addresses, by a CA.

    Raises:
        KeysError: a host that can be neither, or the certificate would outlive the CA.
    """
    end = datetime.now(UTC) + timedelta(days=days)
    if end > ca.certificate.not_valid_after_utc:
        raise KeysError(
            f"--days {days}: the CA ends before, on {ca.certificate.not_valid_after_utc:%Y-%m-%d}"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    names = [_general_name(host) for host in hosts]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedNano server")])
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    certificate = (
        _builder(subject, ca.certificate.subject, key.public_key(), end)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_key, critical=False)
        .sign(ca.key, hashes.SHA384())
    )
    return {"server.crt": certificate.public_bytes(Encoding.PEM), "server.key": _pem(key)}


def node_files(names: Sequence[str]) -> Files:
    """A key pair a node: ECDSA P-384 in OpenSSH's format, the one that Flower takes.

    Raises:
        KeysError: a name that cannot be a file's, or is one of the server's.
    """
    files: Files = {}
    for name in names:
        if not NODE.fullmatch(name) or name in ("ca", "server"):
            raise KeysError(f"--node {name!r}: use letters, digits, - and _; not ca or server")
        if name in files:
            raise KeysError(f"--node {name} is given twice")
        key = ec.generate_private_key(ec.SECP384R1())
        files[name] = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        files[f"{name}.pub"] = public + b" " + name.encode() + b"\n"
    return files


def new(folder: Path, hosts: Sequence[str], nodes: Sequence[str], ca_days: int, days: int) -> None:
    """Write all keys of a federation into a folder that is new or empty.

    Raises:
        KeysError: it is not, or as above.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KeysError(f"{folder} is there already and not empty; nothing is overwritten")
    ca = new_authority(ca_days)
    authority = {"ca.crt": ca.certificate.public_bytes(Encoding.PEM), "ca.key": _pem(ca.key)}
    files = authority | server_files(ca, hosts, days) | node_files(nodes)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(folder, files)


def renew(folder: Path, hosts: Sequence[str], days: int) -> Path:
    """A new key and certificate for the server; those before stay, the folder of them is returned.

    Args:
        hosts: names and addresses; the present certificate's where there are none.

    Raises:
        KeysError: the folder lacks a file, or as above.
    """
    ca = read_authority(folder)
    present = x509.load_pem_x509_certificate(_read(folder / "server.crt"))
    files = server_files(ca, hosts or hosts_of(present), days)
    earlier = folder / f"server-{present.serial_number:x}"
    earlier.mkdir(mode=0o700)
    for name in files:
        (folder / name).rename(earlier / name)
    write(folder, files)
    return earlier


def add(folder: Path, nodes: Sequence[str]) -> None:
    """Key pairs for further nodes; these need nothing of the CA.

    Raises:
        KeysError: one is there already, or as above.
    """
    _read(folder / "ca.crt")
    write(folder, node_files(nodes))


def read_authority(folder: Path) -> Authority:
    """
    Raises:
        KeysError: the folder has no CA, or not its key.
    """
    certificate = x509.load_pem_x509_certificate(_read(folder / "ca.crt"))
    key = load_pem_private_key(_read(folder / "ca.key"), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (
        key.public_key() != certificate.public_key()
    ):
        raise KeysError(f"{folder / 'ca.key'} is not the key of {folder / 'ca.crt'}")
    return Authority(certificate, key)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that a certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that are not there yet, secret ones readable for their owner alone.

    Raises:
        KeysError: one is there; then none is written.
    """
    if there := [name for name in files if os.path.lexists(folder / name)]:
        raise KeysError(f"{folder / there[0]} is there already; nothing is overwritten")
    for name, content in files.items():
        mode = 0o644 if name.endswith((".crt", ".pub")) else 0o600
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise KeysError(f"{file}: {error.strerror}") from None


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    all_digits = labels[-1].isdecimal()  # a mistyped IP address
    if len(host) > 253 or all_digits or not all(LABEL.fullmatch(label) for label in labels):
        raise KeysError(f"--host {host!r}: is neither a DNS name nor an IP address (and no port)")
    return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCKS_APART)
        .not_valid_after(end)
    )


def _usage(*wanted: str) -> x509.KeyUsage:
    """Allow these uses of a key, of all that X.509 names."""
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
    names += " key_cert_sign crl_sign encipher_only decipher_only"
    return x509.KeyUsage(**{name: name in wanted for name in names.split()})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _say(folder: Path) -> None:
    """Which file goes where."""
    present = x509.load_pem_x509_certificate(_read(folder / "server.crt"))
    nodes = sorted(file.stem for file in folder.glob("*.pub"))
    print(f"server certificate for {', '.join(hosts_of(present))}")
    print(f"valid until {present.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    print(f"server     {folder}: ca.crt, server.crt, server.key, and the *.pub to register")
    for name in nodes:
        print(f"{name:10} {folder}: ca.crt, {name}")
    print(f"offline    {folder}: ca.key, which no machine of the federation needs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (
        ("new", "a CA, the server's certificate and the nodes' key pairs"),
        ("renew", "a new key and certificate for the server, from the CA that is there"),
        ("add", "key pairs for further nodes"),
    ):
        command = commands.add_parser(name, help=does, description=does)
        command.add_argument("folder", type=Path)
        if name != "renew":
            command.add_argument("--node", nargs="+", default=[], required=name == "add")
        if name != "add":
            command.add_argument(
                "--host",
                nargs="+",
                default=[],
                required=name == "new",
                help="DNS names and IP addresses by which clients reach the server"
                + ("" if name == "new" else "; else the present certificate's"),
            )
            command.add_argument("--days", type=int, default=SERVER_DAYS, help="of the certificate")
        if name == "new":
            loopback = f"add {', '.join(LOOPBACK)}"
            command.add_argument("--loopback", action="store_true", help=loopback)
            command.add_argument("--ca-days", type=int, default=CA_DAYS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "new":
            hosts = dict.fromkeys([*asked.host, *(LOOPBACK if asked.loopback else ())])
            new(asked.folder, list(hosts), asked.node, asked.ca_days, asked.days)
        elif asked.command == "renew":
            print(f"the earlier ones are in {renew(asked.folder, asked.host, asked.days)}")
        else:
            add(asked.folder, asked.node)
        _say(asked.folder)
    except (KeysError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
