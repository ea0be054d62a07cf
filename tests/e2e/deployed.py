"""A deployment whose parts can be killed: SuperLink over TLS, SuperNodes with keys, supervised."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from fednano_flwr.launcher.environment import bin_folder
from fednano_flwr.launcher.superlink import CONNECTION, SuperLink, superlink
from tests.certificates import authority, certificate
from tests.conftest import REPOSITORY
from tests.proxy import free_port

RESTART_SECONDS = 2.0


def wait_for(what: str, found: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What `found` returns as soon as that is something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if result := found():
            return result
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


class SuperNode:
    """A SuperNode that is started again whenever it ends, as by a supervisor."""

    def __init__(self, link: SuperLink, partition: int, ca: str, key: Path, log: Path) -> None:
        self._command = [
            str(bin_folder() / "flower-supernode"),
            *("--superlink", link.address, "--root-certificates", ca),
            *("--auth-supernode-private-key", str(key), "--port", str(free_port())),
            *("--node-config", f"partition-id={partition} num-partitions=2"),
        ]
        self._link, self._log = link, log
        self._stop = threading.Event()
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name=f"supernode-{partition}")
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it was killed for good."""
        return self._stop.is_set()

    def kill(self) -> None:
        """SIGKILL of the SuperNode, and of nothing that it started."""
        assert self.process is not None
        self.process.kill()

    def end(self) -> None:
        """It is killed for good."""
        self._stop.set()
        self.kill()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def client(self, port: int) -> psutil.Process | None:
        """The client process that is connected to the LLM service at this port, if there is one."""
        assert self.process is not None
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return None
        for process in below:
            try:
                if any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")):
                    return process
            except psutil.Error:
                continue
        return None

    def _supervise(self) -> None:
        while not self._stop.is_set():
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(
                    self._command,
                    cwd=self._link.folder / "empty",
                    env=self._link.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.starts += 1
            self.process.wait()
            self._stop.wait(RESTART_SECONDS)


@dataclass
class Run:
    """A submitted run and what it says, line by line with the time."""

    process: subprocess.Popen[str]
    folder: Path
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def said(self, text: str, seconds: float = 300.0) -> float:
        """When it first said something that holds this text; waits for it."""

        def found() -> float:
            if self.process.poll() is not None:
                self.thread.join(10)
            return next((when for when, line in self.lines if text in line), 0.0)

        try:
            return float(wait_for(text, found, seconds))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text()}") from None

    def run_id(self) -> int:
        self.said("started run")
        found = re.search(r"started run (\d+)", self.text())
        assert found is not None
        return int(found[1])

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def round_is_over(self, number: int) -> None:
        wait_for(f"round {number}", lambda: len(self.rounds()) > number, 400)

    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))


class Deployment:
    """A SuperLink with a database, and two SuperNodes."""

    def __init__(self, link: SuperLink, folder: Path, ca: str) -> None:
        self.link, self._folder, self._ca = link, folder, ca
        self.nodes: dict[int, SuperNode] = {}

    def start_nodes(self) -> None:
        """Start the SuperNodes that are not there, or were killed for good."""
        for partition in (0, 1):
            if partition not in self.nodes or self.nodes[partition].ended:
                self._start_node(partition)

    def end(self) -> None:
        for node in self.nodes.values():
            node.end()

    def _start_node(self, partition: int) -> None:
        """Under its own key, which is registered the first time."""
        key = self._folder / f"node-{partition}"
        if not key.exists():
            command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)]
            subprocess.run(command, check=True, timeout=30)
            self.link.flwr("supernode", "register", f"{key}.pub", CONNECTION)
        log = self._folder / f"supernode-{partition}.log"
        self.nodes[partition] = SuperNode(self.link, partition, self._ca, key, log)

    def submit(self, flat: dict[str, Any]) -> Run:
        file = self._folder / "run.toml"
        file.write_text(tomli_w.dumps(flat))
        arguments = ("run", str(REPOSITORY), CONNECTION, "--stream", "--run-config", str(file))
        process = self.link.start(
            "flwr", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return Run(process, Path(flat["run.dir"]) / flat["run.name"])

    def ended(self, run: Run, seconds: float = 400.0) -> str:
        """The run's status once it has finished."""

        def finished() -> str:
            status, _ = self.link.status(run.run_id())
            time.sleep(2)  # each look is a process of its own
            return status if status.startswith("finished") else ""

        return str(wait_for("the run's end", finished, seconds))

    def server_app(self) -> psutil.Process:
        """The process of the ServerApp that runs."""
        return wait_for("the ServerApp", self._server_app, 30)

    def kill_superlink(self) -> None:
        self.link.process.kill()
        self.link.process.wait(10)

    def restart_superlink(self) -> None:
        """The same command with the same database."""
        command = self.link.process.args
        with self.link.log.open("ab") as log:
            self.link.process = subprocess.Popen(
                command,
                cwd=self.link.folder / "empty",
                env=self.link.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _server_app(self) -> psutil.Process | None:
        for process in self.link.processes.look():
            try:
                if any("flwr-serverapp" in part for part in process.cmdline()[:3]):
                    return process
            except psutil.Error:
                continue
        return None


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """Two SuperNodes on a SuperLink; whatever was started is ended with the block."""
    ca = authority()
    trusted, _ = ca.write(folder / "ca")
    cert, key = certificate(ca).write(folder / "certificate")
    tls = ("--ssl-ca-certfile", trusted, "--ssl-certfile", cert, "--ssl-keyfile", key)
    keys = ("--enable-supernode-auth", "--database", str(folder / "superlink.db"))
    state = folder / "state"
    state.mkdir()
    with ExitStack() as stack:
        link = stack.enter_context(
            superlink(
                state,
                simulation=False,
                options=(*tls, *keys),
                connection={"root-certificates": trusted},
            )
        )
        one = Deployment(link, folder, trusted)
        stack.callback(one.end)
        yield one
