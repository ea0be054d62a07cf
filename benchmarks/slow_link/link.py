"""Links of a known rate, delay and loss between network namespaces, without the kernel's netem.

A link is a pair of TUN devices, one in the host's namespace and one in the client's. One process
carries packets between them: each is sent after the one before it, at the link's rate, and arrives
after the delay. Namespaces and devices vanish with the processes that hold them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

HOST = "10.78.0.1"
MTU = 1500
AT_ONCE = 64
"""Packets that are read from a device before others have their turn."""
LEAST_QUEUE = 64 * MTU
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000


@dataclass(frozen=True)
class Quality:
    """What a link is like, in each direction.

    Attributes:
        mbit: Mbit/s, headers of IP included.
        round_trip_ms: delay there and back, beside what sending takes.
        loss: share of the packets that are lost.
        congestion: how TCP finds its rate, at both ends: "cubic", Linux's default, or "bbr".
        first_window: packets with which it begins, and begins again after a pause; Linux's are 10.
    """

    mbit: float
    round_trip_ms: float
    loss: float = 0.0
    congestion: str = "cubic"
    first_window: int = 10

    def in_words(self) -> str:
        """`20 Mbit/s, 40 ms, 1 % loss, bbr`."""
        words = [f"{self.mbit:g} Mbit/s", f"{self.round_trip_ms:g} ms"]
        words += [f"{self.loss:.0%} loss"] if self.loss else []
        words += [self.congestion] if self.congestion != "cubic" else []
        words += [f"initcwnd {self.first_window}"] if self.first_window != 10 else []
        return ", ".join(words)

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.mbit * 1e6 / 8

    @property
    def queue(self) -> float:
        """Bytes that may wait: what the link holds under way there and back."""
        return max(LEAST_QUEUE, self.rate * self.round_trip_ms / 1e3)


class Direction:
    """Packets on their way from one end to the other.

    Attributes:
        bytes, lost, dropped: bytes that were sent; packets that were lost, or found no room.
        late: mean seconds between the time that a packet was due and its arrival.
    """

    def __init__(self, quality: Quality, seed: int) -> None:
        self.quality, self._random = quality, random.Random(seed)
        self._free = 0.0
        self._under_way: deque[tuple[float, bytes]] = deque()
        self.bytes = self.lost = self.dropped = self._arrived = 0
        self._late = 0.0

    @property
    def next(self) -> float:
        """When the next packet is due."""
        return self._under_way[0][0] if self._under_way else float("inf")

    @property
    def late(self) -> float:
        return self._late / max(1, self._arrived)

    def send(self, packet: bytes, now: float) -> None:
        """Send a packet, unless the queue is full; it may be lost."""
        quality = self.quality
        begins = max(now, self._free)
        if (begins - now) * quality.rate > quality.queue:
            self.dropped += 1
            return
        self._free = begins + len(packet) / quality.rate
        self.bytes += len(packet)
        if self._random.random() < quality.loss:
            self.lost += 1
            return
        self._under_way.append((self._free + quality.round_trip_ms / 2e3, packet))

    def due(self, now: float) -> Iterator[bytes]:
        """Packets that arrive now."""
        while self.next <= now:
            when, packet = self._under_way.popleft()
            self._late += now - when
            self._arrived += 1
            yield packet


def why_not() -> str:
    """Why this machine cannot have such links; "" where it can."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return tried.stderr.strip()


def own_network() -> int:
    """Move this thread, and those that it starts, to a network namespace of their own.

    Returns:
        The process's id, by which others find the namespace.

    Raises:
        OSError: it is not permitted.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network namespace is refused")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return os.getpid()


class End(NamedTuple):
    """One end of a link: its TUN device, and the process that holds its network namespace."""

    file: int
    process: int
    route: str

    @classmethod
    def open(cls, name: str, process: int, own: str, other: str) -> End:
        """Make a device `name` with the address `own`; packets to `other` leave by it."""
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        asked = struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(file, TUNSETIFF, asked)
        subprocess.run(f"ip link set {name} netns {process}".split(), check=True)
        end = cls(file, process, f"{other} dev {name} src {own}")
        end.run(f"ip address add {own} dev {name}", f"ip link set {name} mtu {MTU} up")
        return end

    def run(self, *commands: str) -> None:
        """Run commands of the shell in the network namespace."""
        enter = ["nsenter", "-t", str(self.process), "--net", "sh", "-ec"]
        subprocess.run([*enter, "\n".join(commands)], check=True)


def carry(pipe: Any, host: int, clients: Sequence[int]) -> None:
    """A process that carries the packets of one link a client, until its pipe is closed.

    A `Quality` from the pipe makes all links new, and is answered with None; None is answered with
    what became of the packets since then.

    Args:
        host, clients: ids of processes in network namespaces of their own, which last longer.
    """
    own_network()
    ends: list[End] = []
    others: dict[int, int] = {}
    for number, client in enumerate(clients):
        address = f"10.78.0.{number + 2}"
        one = End.open(f"client{number}", host, HOST, address)
        other = End.open("host", client, address, HOST)
        ends += one, other
        others |= {one.file: other.file, other.file: one.file}
    ways = _ways(ends, Quality(1000.0, 0.0))
    pipe.send(None)
    with suppress(EOFError):
        while True:
            wait = min(way.next for way in ways.values()) - time.monotonic()
            ready = select.select([*others, pipe], [], [], min(max(wait, 0.0), 1.0))[0]
            if pipe in ready:
                quality = pipe.recv()
                ways = _ways(ends, quality) if quality else ways
                pipe.send(None if quality else _counts(ways.values()))
            for file in others.keys() & ready:
                for packet in _packets(file):
                    ways[file].send(packet, time.monotonic())
            for file, way in ways.items():
                for packet in way.due(time.monotonic()):
                    os.write(others[file], packet)


def _ways(ends: Sequence[End], quality: Quality) -> dict[int, Direction]:
    """New directions, by the file that their packets come from; for connections to come."""
    for end in ends:
        end.run(
            # Not the namespace's default, which may only be what the whole system allows.
            f"ip route replace {end.route} congctl {quality.congestion} "
            f"initcwnd {quality.first_window}",
            # No connection learns from an earlier one.
            "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save",
        )
    return {end.file: Direction(quality, seed) for seed, end in enumerate(ends)}


def _packets(file: int) -> Iterator[bytes]:
    """Those that a device has now, but not so many that others would have to wait."""
    with suppress(BlockingIOError):
        for _ in range(AT_ONCE):
            yield os.read(file, 2 * MTU)


def _counts(ways: Collection[Direction]) -> dict[str, float]:
    names = ("bytes", "lost", "dropped")
    found = {name: sum(getattr(way, name) for way in ways) for name in names}
    return found | {"late_ms": 1e3 * max(way.late for way in ways)}
