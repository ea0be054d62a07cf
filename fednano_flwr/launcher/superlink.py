"""A SuperLink of our own, on a free loopback port, while a `with` block runs.

`flwr run` alone leaves a daemon behind that keeps the first run's environment and folder. Here each
SuperLink has its own `FLWR_HOME`, log and environment, and ends with all that it started.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from fednano_flwr.base.signals import no_interrupts
from fednano_flwr.launcher.environment import HOME, LaunchError, bin_folder, environment_of
from fednano_flwr.launcher.processes import Processes, Watcher

CONNECTION = "fednano"  # the SuperLink's name in FLWR_HOME/config.toml
START_SECONDS = 60.0


@dataclass
class SuperLink:
    """A running SuperLink, its address and its processes."""

    folder: Path
    port: int
    environment: dict[str, str]
    processes: Processes
    process: subprocess.Popen[bytes]
    started: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The SuperLink's output; in simulation a run's own output is only in its stream."""
        return self.folder / "superlink.log"

    def start(self, program: str, *arguments: str, **popen: Any) -> subprocess.Popen[Any]:
        """Start one of Flower's programs against this SuperLink; it ends with the SuperLink."""
        process = _start(program, arguments, self.folder, self.environment, **popen)
        self.started.append(process)
        return process

    def flwr(self, *arguments: str, timeout: float = 30.0) -> str:
        """Output of `flwr ARGUMENTS`.

        Raises:
            LaunchError: it failed or took longer than `timeout` seconds.
        """
        process = self.start("flwr", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise LaunchError(f"flwr {arguments[0]} took over {timeout:.0f} s", self.log) from None
        if process.returncode:
            text = (output + errors).decode(errors="replace").strip()
            raise LaunchError(f"flwr {arguments[0]} failed: {text}", self.log)
        return output.decode(errors="replace")

    def status(self, run_id: int) -> tuple[str, str]:
        """A run's status, as `finished:completed`, and Flower's remark on it or nothing."""
        answer = self.flwr("list", "--run-id", str(run_id), CONNECTION, "--format", "json")
        run = json.loads(answer)["runs"][0]
        details = run.get("status-details") or ""
        return run["status"], "" if details == "N/A" else details

    def stop(self, run_id: int) -> None:
        """Ask a run to stop."""
        self.flwr("stop", str(run_id), CONNECTION)


@contextmanager
def superlink(
    folder: Path,
    *,
    simulation: bool = True,
    options: Sequence[str] = ("--insecure",),
    connection: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[SuperLink]:
    """A SuperLink that keeps its state in `folder`; all its processes end with the block.

    Its working directory, which the apps inherit, is an empty folder. Simulated clients put the
    working directory first on `sys.path`; so they import the app bundle, as the ServerApp does, and
    no package of the user's current folder.

    Args:
        folder: an existing folder; `superlink.log` is written there.
        simulation: run clients in Ray; otherwise SuperNodes have to connect.
        options: further options of `flower-superlink`.
        connection: how `flwr` connects, beside the address; by default without TLS.
        environment: variables for all processes, beside this process's own.

    Raises:
        LaunchError: it did not start.
    """
    processes = Processes(uuid.uuid4().hex)
    variables = environment_of(folder, processes.run_id) | dict(environment or {})
    made = [folder / name for name in ("empty", HOME, "ray")]
    for path in made:
        path.mkdir()
    elsewhere = [] if "RAY_TMPDIR" in variables else [_short_folder(folder)]
    for path in elsewhere:
        variables["RAY_TMPDIR"] = str(path)
    flags = [*(["--simulation"] if simulation else []), *options]
    watcher = Watcher(processes.run_id, made + elsewhere)
    link: SuperLink | None = None
    try:
        link = _started(folder, flags, variables, processes)
        config = {"address": link.address, **(connection or {"insecure": True})}
        text = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: config}})
        (folder / HOME / "config.toml").write_text(text, encoding="utf-8")
        yield link
    finally:
        with no_interrupts():
            processes.end()
            watcher.dismiss()
            for path in elsewhere:
                shutil.rmtree(path, ignore_errors=True)
            for process in [link.process, *link.started] if link else []:
                process.poll()  # reads its exit status, so that no zombie stays


def _short_folder(folder: Path) -> Path:
    """A folder for Ray's sockets if the run's path is too long for them, for this run alone."""
    try:
        return Path(tempfile.mkdtemp(prefix="fednano-ray-", dir="/tmp"))
    except OSError as error:
        raise LaunchError(
            f"{folder} is too long for Ray's sockets, and /tmp cannot be used ({error}): set "
            "TMPDIR to a folder whose path is shorter"
        ) from None


def _started(
    folder: Path, flags: Sequence[str], variables: dict[str, str], processes: Processes
) -> SuperLink:
    """Start the SuperLink, on another port if the first was taken meanwhile.

    It is up when it listens itself: another program may answer on the port.
    """
    log = folder / "superlink.log"
    for _ in range(3):
        port = _free_port()
        arguments = (*flags, "--disable-runtime-dependency-installation")
        arguments += ("--host", "127.0.0.1", "--port", str(port))
        with log.open("ab") as output:
            process = _start(
                "flower-superlink", arguments, folder, variables, stdout=output, stderr=output
            )
        until = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < until:
            if _listens(process.pid, port):
                return SuperLink(folder, port, variables, processes, process)
            time.sleep(0.1)
        processes.end()
    raise LaunchError("Flower's SuperLink did not start", log)


def _start(
    program: str, arguments: Sequence[str], folder: Path, variables: dict[str, str], **popen: Any
) -> subprocess.Popen[Any]:
    """Start in a new session, so that a terminal's Ctrl-C reaches only this process."""
    command = [str(bin_folder() / program), *arguments]
    popen = {"stdin": subprocess.DEVNULL, **popen}
    return subprocess.Popen(
        command, cwd=folder / "empty", env=variables, start_new_session=True, **popen
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(pid: int, port: int) -> bool:
    """Whether this process, or one that it started, listens on the port."""
    with suppress(psutil.Error):
        ours = psutil.Process(pid)
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for process in (ours, *ours.children(recursive=True))
            for connection in process.net_connections("tcp")
        )
    return False  # it has ended meanwhile
