"""A TCP proxy whose connections a test can cut, hold up or lose."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

CHUNK = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Proxy:
    """Forwards connections to `target`, `host:port`, in a thread; use `proxy()`.

    Attributes:
        address: where to connect to.
        accepted: connections so far.
        forwarded: bytes from clients so far.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._lock = threading.Condition()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._upward: set[socket.socket] = set()
        self._held: set[socket.socket] = set()
        self._open, self._hanging, self._ended = True, False, False
        self._due: tuple[int, Callable[[], None], threading.Event] | None = None
        self.accepted = self.forwarded = 0
        self._listener = self._listen(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def after(self, count: int, what: Callable[[], None]) -> threading.Event:
        """Do it as soon as so many more bytes came from clients, before another is forwarded."""
        done = threading.Event()
        with self._lock:
            self._due = (self.forwarded + count, what, done)
        return done

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, as where nobody listens."""
        with self._lock:
            self._open = False

    def hang(self) -> None:
        """Take nothing and forward nothing, as where packets are lost."""
        with self._lock:
            self._hanging = True

    def lose(self) -> None:
        """Let the connections of now hang for ever, as where a router forgot them."""
        with self._lock:
            self._held |= set(self._pairs)

    def restore(self) -> None:
        """Forward again, except what was lost."""
        with self._lock:
            self._open, self._hanging = True, False

    def end(self) -> None:
        with self._lock:
            self._ended = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._ended:
                    break
                if not self._open and self._listener.fileno() >= 0:
                    self._listener.close()
                    self._drop(list(self._pairs))
                elif self._open and self._listener.fileno() < 0:
                    port = int(self.address.rpartition(":")[2])
                    self._listener = self._listen(("127.0.0.1", port))
                self._step()
                self._lock.notify_all()
        self._drop(list(self._pairs))
        self._listener.close()

    def _step(self) -> None:
        """Serve whatever is ready: some hundredths of a second at most."""
        if self._hanging or not self._open:
            self._lock.wait(0.02)
            return
        alive = [end for end in self._pairs if end not in self._held]
        ready, _, _ = select.select([self._listener, *alive], [], [], 0.02)
        for source in ready:
            if source is self._listener:
                self._accept()
            elif source in self._pairs:
                self._forward(source)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        self.accepted += 1
        self._pairs |= {near: far, far: near}
        self._upward.add(near)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(CHUNK)
            if not data:
                raise ConnectionError
            self._pairs[source].sendall(data)
        except OSError:
            self._drop([source])
            return
        if source in self._upward:
            self.forwarded += len(data)
        if self._due and self.forwarded >= self._due[0]:
            (_, what, done), self._due = self._due, None
            what()
            done.set()

    def _drop(self, sockets: list[socket.socket]) -> None:
        for one in sockets:
            for end in (one, self._pairs.pop(one, one)):
                self._pairs.pop(end, None)
                self._upward.discard(end)
                self._held.discard(end)
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()

    @staticmethod
    def _listen(address: tuple[str, int]) -> socket.socket:
        return socket.create_server(address, backlog=64)


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy for as long as the block lasts."""
    one = Proxy(target)
    try:
        yield one
    finally:
        one.end()


def free_port() -> int:
    """A port on loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
