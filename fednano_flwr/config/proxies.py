"""Which connections take a proxy: none to this machine, and none without TLS.

gRPC, httpx (which Flower and the model hub use) and requests follow `http_proxy` and its kin for
any address that `no_proxy` does not name, this machine's own among them.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

import grpc

from fednano_flwr.config import ConfigError, host_and_port, is_loopback

GRPC = ("grpc_proxy", "https_proxy", "http_proxy")
"""What gRPC follows, the first that is set; in lower case only."""
NO_GRPC = "no_grpc_proxy"
"""What gRPC reads instead of `no_proxy` where it is set."""
HTTP = ("https_proxy", "http_proxy", "all_proxy")
"""What Python's HTTP clients follow, in lower or upper case."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def named_proxies(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The proxy variables that are set, by name; user names and passwords are left out."""
    names = dict.fromkeys(GRPC + HTTP)
    found = {
        name: environment[name]
        for lower in names
        for name in (lower, lower.upper())
        if environment.get(name)
    }
    return {name: re.sub(r"//[^/@]*@", "//***@", value) for name, value in found.items()}


def proxies_in_words() -> str:
    """Which proxies are named and what for; "" where there are none.

    Raises:
        ConfigError: Flower, the model hub and all that use httpx would fail with one of them.
    """
    listed = ", ".join(f"{name} = {value}" for name, value in named_proxies().items())
    if not listed:
        return ""
    import httpx  # takes as long as the rest of a command's help

    try:
        httpx.Client().close()
    except (ImportError, ValueError) as error:  # a SOCKS proxy without its package, for one
        raise ConfigError(f"{listed}: cannot be used ({error}); unset it") from None
    return (
        f"{listed}: used for other machines, never for this one, nor to an LLM service without TLS"
    )


def spare_this_machine(environment: MutableMapping[str, str]) -> None:
    """Add this machine's own addresses to `no_proxy`, for all programs that see it.

    Also to `no_grpc_proxy` where it is set, which gRPC reads instead, or where `no_proxy` is "*",
    which means all machines only while it stands alone, and which gRPC does not know.
    """
    if not named_proxies(environment):
        return  # on a system whose settings name a proxy, `no_proxy` alone would hide it
    everywhere = _no_proxy(environment).strip() == "*"
    if not everywhere:
        text = _with_own(_no_proxy(environment))
        environment["no_proxy"] = environment["NO_PROXY"] = text
    if everywhere or environment.get(NO_GRPC):
        environment[NO_GRPC] = _with_own(environment.get(NO_GRPC, ""))


def _with_own(spared: str) -> str:
    listed = spared.split(",")
    own = [name for name in (*LOOPBACK, *sorted(_own_addresses())) if name not in listed]
    return ",".join([*filter(None, listed), *own])


def spares(host: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `no_proxy` names a host, itself, its domain or its network."""
    return _is_listed(host, _no_proxy(environment))


def proxy_of(address: str, ca: bytes | None) -> str:
    """`https_proxy = http://proxy:3128`, the proxy that a channel to an LLM service takes, or "".

    Args:
        address: `host:port` of the service.
        ca: as in `open_channel`.
    """
    name = next((name for name in GRPC if os.environ.get(name)), "")
    if ca is None or not os.environ.get(name, "").startswith("http://"):  # gRPC knows no other
        return ""
    try:
        host, _ = host_and_port(address)
    except ValueError:  # a name that only gRPC can resolve
        host = address
    if spares(host) or _is_listed(host, os.environ.get(NO_GRPC, "")) or _is_own(host):
        return ""
    return f"{name} = {named_proxies()[name]}"


def open_channel(
    address: str, ca: bytes | None, options: Sequence[tuple[str, Any]] = ()
) -> grpc.Channel:
    """A channel to an LLM service; through a proxy only where `proxy_of` names one.

    Args:
        ca: PEM of the certificates of which one has to vouch for the service's; None: no TLS.
    """
    followed = ("grpc.enable_http_proxy", int(bool(proxy_of(address, ca))))
    if ca is None:
        return grpc.insecure_channel(address, [*options, followed])
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), [*options, followed])


def _is_listed(host: str, text: str) -> bool:
    entries = [entry.strip().lower() for entry in text.split(",")]
    return any(_names(entry, host.lower()) for entry in entries if entry)


def _names(entry: str, host: str) -> bool:
    """Whether an entry of `no_proxy` is a host's name, a domain or network that it is in, or *."""
    domain = entry.removeprefix(".")
    if entry == "*" or host == domain or host.endswith(f".{domain}"):
        return True
    with suppress(ValueError):  # one of both is no address
        return ip_address(host) in ip_network(entry, strict=False)
    return False


def _no_proxy(environment: Mapping[str, str]) -> str:
    return environment.get("no_proxy") or environment.get("NO_PROXY") or ""


def _own_addresses() -> set[str]:
    """This machine's name, and the addresses of its network interfaces."""
    import psutil  # nothing else of a client or a host needs it

    found = {one.address for of_one in psutil.net_if_addrs().values() for one in of_one}
    own = {socket.gethostname().lower()}
    for text in found:
        with suppress(ValueError):  # a hardware address
            if not (address := ip_address(text)).is_link_local:
                own.add(str(address))
    return own


def _is_own(host: str) -> bool:
    """Whether a name or an address is this machine's."""
    if is_loopback(host):
        return True
    own = _own_addresses()
    if host.lower() in own:
        return True
    try:
        found = {str(place[4][0]) for place in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):  # only the proxy knows it
        return False
    return any(is_loopback(address) or address in own for address in found)
