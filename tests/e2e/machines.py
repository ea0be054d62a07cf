"""Machines of a test: on Linux as root a network and a view of the disk each, else this one.

Where the system allows it, server and clients have network namespaces of their own, joined by a
virtual cable from the server to each client: other addresses, other ports, and no way from one
client to another. A client's mount namespace has empty folders over what is the others'. Both
vanish with the last process in them.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fednano_flwr.launcher.environment import environment_of
from fednano_flwr.launcher.processes import Processes, Watcher
from tests.conftest import REPOSITORY

SERVER_ADDRESS = "10.77.255.1"


@dataclass
class Machine:
    """A machine with a folder of its own, and the variables that scripts find set there."""

    name: str
    folder: Path
    environment: dict[str, str]
    enter: list[str] = field(default_factory=list)
    variables: str = ""

    def start(self, script: str, log: Path) -> subprocess.Popen[bytes]:
        """Run a script in the background; its output goes to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self._command(f"{script.rstrip()} &\nwait $!"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
            )

    def run(self, script: str, timeout: float = 900) -> str:
        """Output of a script, which has to end well."""
        result = subprocess.run(
            self._command(script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout,
        )
        assert result.returncode == 0, f"{self.name}: {script}\n{result.stdout}{result.stderr}"
        return result.stdout

    def _command(self, script: str) -> list[str]:
        text = f"set -euo pipefail\ncd {REPOSITORY}\n{self.variables}\n{script}"
        return [*self.enter, "bash", "-c", text]


@dataclass
class Place:
    """Where a test's machines are, in words, and how clients reach the server.

    Attributes:
        machines: the server and the clients.
        apart: whether each has a network of its own.
        address: of the server.
        words: for people.
    """

    machines: list[Machine]
    apart: bool
    address: str
    words: str


@contextmanager
def machines(folder: Path, names: Sequence[str], hidden: Sequence[Path]) -> Iterator[Place]:
    """Machines by name, the server first; all that they run ends with the block.

    Args:
        folder: each has one in it.
        hidden: the server's own, like a model; beside the other machines' folders clients do not
            see it where machines are apart.
    """
    processes = Processes(uuid.uuid4().hex)
    watcher = Watcher(processes.run_id, [])
    made = []
    for name in names:
        own = folder / name
        own.mkdir()
        environment = environment_of(own, processes.run_id)
        environment["FEDNANO_CACHE"] = str(own / "cache")
        made.append(Machine(name, own, environment))
    holders: list[subprocess.Popen[bytes]] = []
    try:
        why = _separate(made, holders, hidden)
        if why:
            yield Place(made, False, "127.0.0.1", f"all on one network, the loopback: {why}")
        else:
            words = f"each on a network and a disk of its own, the server at {SERVER_ADDRESS}"
            yield Place(made, True, SERVER_ADDRESS, words)
    finally:
        processes.end()
        watcher.dismiss()
        for holder in holders:
            holder.wait()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody has, of those that systems give to nobody by themselves.

    Between now and their use no connection and no server that takes any port can take one.
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} free ports between 20000 and 32000")


def _separate(
    made: Sequence[Machine], holders: list[subprocess.Popen[bytes]], hidden: Sequence[Path]
) -> str:
    """Give each machine namespaces of its own; why not, where that cannot be."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "networks of their own take root"
    try:
        for machine in made:
            holders.append(_holder(machine.environment))
            machine.enter = ["nsenter", "-t", str(holders[-1].pid), "--net", "--mount", "--"]
        _connect(made, holders)
        for client in made[1:]:
            others = [machine.folder for machine in made if machine is not client]
            for path in [*others, *hidden]:
                _do(client, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        for machine in made:
            machine.enter = []
        said = getattr(error, "stderr", None) or str(error)
        return f"no networks of their own here: {said.strip()}"
    return ""


def _holder(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that does nothing in namespaces of its own."""
    command = ["unshare", "--net", "--mount", "sleep", "infinity"]
    holder = subprocess.Popen(command, env=environment, start_new_session=True)
    until = time.monotonic() + 10
    while _programs_name(holder) != "sleep":  # before that it may not have its namespaces yet
        if holder.poll() is not None or time.monotonic() > until:
            raise OSError("unshare --net --mount is refused")
        time.sleep(0.02)
    return holder


def _programs_name(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/comm").read_text().strip()


def _connect(made: Sequence[Machine], holders: Sequence[subprocess.Popen[Any]]) -> None:
    server, clients = made[0], made[1:]
    _do(server, "ip", "link", "set", "lo", "up")
    _do(server, "ip", "address", "add", f"{SERVER_ADDRESS}/32", "dev", "lo")
    for k, (client, holder) in enumerate(zip(clients, holders[1:], strict=True)):
        cable = f"type veth peer name server netns {holder.pid}".split()
        _do(server, "ip", "link", "add", f"client{k}", *cable)
        _do(server, "ip", "address", "add", f"10.77.{k}.1/24", "dev", f"client{k}")
        _do(server, "ip", "link", "set", f"client{k}", "up")
        _do(client, "ip", "link", "set", "lo", "up")
        _do(client, "ip", "address", "add", f"10.77.{k}.2/24", "dev", "server")
        _do(client, "ip", "link", "set", "server", "up")
        _do(client, "ip", "route", "add", "default", "via", f"10.77.{k}.1")


def _do(machine: Machine, *command: str) -> None:
    subprocess.run([*machine.enter, *command], check=True, capture_output=True, text=True)
