"""Run a Flower app in simulation: start a SuperLink, submit the app, end all processes.

status = launch(Path("."), {"seed": 1}, clients=5, client_cpus=1, client_gpus=0, on_line=print)
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from fednano_flwr.base.console import ALL_DONE, MARK
from fednano_flwr.base.signals import interrupts, no_interrupts
from fednano_flwr.base.version import commit_of
from fednano_flwr.config.machine import federation_config
from fednano_flwr.config.project import with_code
from fednano_flwr.launcher.environment import HOME, LaunchError
from fednano_flwr.launcher.superlink import CONNECTION, SuperLink, superlink
from fednano_flwr.rounds.snapshot import PROGRESS_FILE

COMPLETED = "finished:completed"
# On a busy machine Ray's daemons may take longer to start than Ray waits. Its errors differ; all
# have Flower's function in the traceback, unless the process itself was ended.
RAY_DID_NOT_START = (
    "in init_ray",
    "The current node timed out during startup",
    "Timed out waiting for file",
    "Timed out waiting for node info",
    "while waiting for node to startup",
    "GCS cannot",
    "to start GCS",
    "to connect to GCS",
    "to get node info",
    "to register worker to Raylet",
    "Failed to connect to socket at address",
)
NO_ROOM = "No space left on device"
FULL_BYTES = 8 * 2**20  # a disk with less free is full
STATUS_SECONDS = 30.0  # the stream may end a moment before the run's status is final
LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class RunStatus:
    """How a run ended: Flower's status and remark, and the log unless it completed."""

    run_id: int
    status: str
    details: str
    log: Path | None

    @property
    def completed(self) -> bool:
        return self.status == COMPLETED

    @property
    def lost_clients(self) -> str:
        """The clients that took no part in a run with complete results, and why; else ""."""
        _, all_done, lost = self.details.partition(ALL_DONE)
        return all_done + lost


def launch(
    app_dir: Path,
    run_config: Mapping[str, Any],
    clients: int,
    client_cpus: int,
    client_gpus: float,
    on_line: Callable[[str], None],
    watch: Callable[[Path], None] | None = None,
) -> RunStatus:
    """Run the app, end all its processes, and return how it ended.

    Args:
        app_dir: folder of the app's pyproject.toml.
        run_config: flat keys that the app's pyproject.toml also has.
        clients: number of simulated clients.
        client_cpus: CPUs of a client while it works; other clients wait.
        client_gpus: GPUs of a client, or its share of one.
        on_line: called with each line that the run prints, with colour codes.
        watch: called with the file of the run's progress; without it, progress is printed in
            lines.

    Raises:
        LaunchError: Flower did not start or refused the app.
        KeyboardInterrupt: at SIGINT, SIGTERM or SIGHUP, after all is ended and removed.
    """
    federation = federation_config(clients, client_cpus, client_gpus)
    attempt = partial(_attempt, app_dir, run_config, federation, on_line, watch)
    status = attempt()
    if _ray_did_not_start(status):
        on_line(f"{MARK}Ray did not start in time on this machine; trying once more")
        first = status
        status = attempt()
        if _ray_did_not_start(status):
            reason = "Ray did not start in time on this machine, twice; end other programs"
            return dataclasses.replace(status, details=reason)
        if first.log is not None:  # only the second attempt matters now
            shutil.rmtree(first.log.parent, ignore_errors=True)
    return status


def _ray_did_not_start(status: RunStatus) -> bool:
    """Whether a run failed before its first round because Ray did not start."""
    if status.completed or status.log is None or NO_ROOM in status.details:
        return False
    logs = [status.log, status.log.with_name("superlink.log")]  # the latter of what is not Python
    text = "\n".join(log.read_text("utf-8", "replace") for log in logs if log.exists())
    begun = re.search(re.escape(MARK) + r"round +\d", text)
    return not begun and any(sign in text for sign in RAY_DID_NOT_START)


def tail(log: Path, lines: int = 40) -> list[str]:
    """The last lines of a log."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def _attempt(
    app_dir: Path,
    run_config: Mapping[str, Any],
    federation: str,
    on_line: Callable[[str], None],
    watch: Callable[[Path], None] | None,
) -> RunStatus:
    """One run in a temporary folder, which is removed, or keeps the logs of a failure."""
    folder = Path(tempfile.mkdtemp(prefix="fednano-"))
    keep_logs = False
    commit = commit_of(app_dir)
    variables = {"FEDNANO_COMMIT": commit} if commit else {}
    if watch is not None:
        variables[PROGRESS_FILE] = str(folder / HOME / "progress.json")
        watch(Path(variables[PROGRESS_FILE]))
    with interrupts():
        try:
            with superlink(folder, environment=variables) as link:
                status = _follow(link, app_dir, run_config, federation, on_line)
            keep_logs = not (status.completed or status.lost_clients)
            if NO_ROOM in status.details:
                status = dataclasses.replace(status, details=_what_is_full(folder, status.details))
        except LaunchError:
            keep_logs = True
            raise
        finally:
            with no_interrupts():
                _remove(folder, keep_logs)
    return status


def _follow(
    link: SuperLink,
    app_dir: Path,
    run_config: Mapping[str, Any],
    federation: str,
    on_line: Callable[[str], None],
) -> RunStatus:
    """Submit the app, forward its output until it ends, and query its final status."""
    app = with_code(app_dir.resolve(), link.folder)
    arguments = ["run", str(app), CONNECTION, "--stream"]
    arguments += ["--federation-config", federation]
    if run_config:
        keys = link.folder / "run-config.toml"
        keys.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        arguments += ["--run-config", str(keys)]
    stream = link.start("flwr", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = link.folder / "run.log"
    run_id: int | None = None
    looked = time.monotonic()
    try:
        with log.open("w", encoding="utf-8") as file:
            for raw in stream.stdout or ():
                line = raw.decode(errors="replace").rstrip("\r\n")
                print(line, file=file, flush=True)
                if run_id is None and (match := re.search(r"started run (\d+)", line)):
                    run_id = int(match[1])
                on_line(line)
                if time.monotonic() - looked > LOOK_SECONDS:
                    link.processes.look()
                    looked = time.monotonic()
    except KeyboardInterrupt:
        if run_id is not None:
            with suppress(LaunchError):  # it is ended below in any case
                link.stop(run_id)
        raise
    if run_id is None:
        raise LaunchError("Flower refused the app", log)
    status, details = _final_status(link, run_id)
    return RunStatus(run_id, status, details, None if status == COMPLETED else log)


def _final_status(link: SuperLink, run_id: int) -> tuple[str, str]:
    """The run's status: `flwr run` exits with 0 also after a failed run."""
    until = time.monotonic() + STATUS_SECONDS
    while True:
        if link.process.poll() is not None:
            return "unknown", f"the SuperLink ended before the run; see {link.log}"
        status, details = link.status(run_id)
        if status.startswith("finished") or time.monotonic() > until:
            return status, details
        time.sleep(0.5)


def _what_is_full(folder: Path, details: str) -> str:
    """Flower's remark about a full disk, with whether it is that of the temporary folder."""
    if shutil.disk_usage(folder).free > FULL_BYTES:
        return f"{details}; TMPDIR = {folder.parent} has room"
    return f"no room in TMPDIR = {folder.parent}; set TMPDIR to another folder"


def _remove(folder: Path, keep_logs: bool) -> None:
    """Remove the folder, or only its subfolders, which are Flower's and Ray's."""
    for path in [p for p in folder.iterdir() if p.is_dir()] if keep_logs else [folder]:
        shutil.rmtree(path, ignore_errors=True)
