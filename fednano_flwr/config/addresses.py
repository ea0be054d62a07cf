"""Network addresses as texts."""

from __future__ import annotations

from ipaddress import ip_address

NO_HOST = set(" \t\r\n/@[]?#")
"""Characters that no host's name or IP address has."""


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:  # another host's name
        return False


def is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


def host_and_port(text: str) -> tuple[str, int]:
    """Split `host:port`, or `[::1]:port` for IPv6.

    Raises:
        ValueError: `text` is of neither form.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    digits = port.isascii() and port.isdecimal()
    if not colon or not bare or not digits or not int(port) < 65536 or set(bare) & NO_HOST:
        raise ValueError(f"{text!r}: give HOST:PORT, such as 192.0.2.7:9093 or [2001:db8::7]:9093")
    if ":" in bare and bare == host:
        raise ValueError(f"{text!r}: put an IPv6 address in brackets, as in [2001:db8::7]:9093")
    if bare != host and not is_ipv6(bare):
        raise ValueError(f"{text!r}: only an IPv6 address is put in brackets")
    return bare, int(port)


def address_to_dial(text: str) -> tuple[str, int]:
    """`host_and_port` of an address that somebody dials, whose port is never 0.

    Raises:
        ValueError: it is no such address.
    """
    host, port = host_and_port(text)
    if not port:
        raise ValueError(f"{text!r}: give HOST:PORT, with the port that is dialled")
    return host, port
