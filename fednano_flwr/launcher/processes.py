"""Find and end every process of one run, whatever its parent.

Flower starts its processes in new sessions, and Ray's daemons outlive their parent. All
inherit one environment variable; processes with this run's value are ended, and no others.

    python -P processes.py RUN_ID FOLDER...      waits beside a run in case it is killed
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "FEDNANO_RUN_ID"


class Processes:
    """The processes whose environment holds `FEDNANO_RUN_ID=<run_id>`, and their descendants."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._seen: set[psutil.Process] = set()

    def look(self) -> set[psutil.Process]:
        """Those alive now, with those seen before that have lost their parent."""
        for process in psutil.process_iter():
            if process.pid != os.getpid() and self._is_marked(process):
                self._seen.add(process)
                with suppress(psutil.Error):  # it ended between the two looks
                    self._seen.update(process.children(recursive=True))
        self._seen = {process for process in self._seen if _alive(process)}
        return set(self._seen)

    def end(self, grace: float = 5.0) -> None:
        """Terminate all of them, and kill those left after `grace` seconds.

        Repeated until none is found: a process may start another while it is being ended.
        """
        for _ in range(10):
            found = self.look()
            if not found:
                return
            _signal(found, "terminate")
            if left := _wait(found, grace):
                _signal(left, "kill")
                _wait(left, 2.0)
            grace = 1.0

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.run_id
        except (psutil.Error, OSError):
            return False  # of another user, or just gone


class Watcher:
    """A process that ends the run's processes when this one dies, even by `kill -9`.

    It sees our end by its standard input: the pipe closes with us. Then it also removes `folders`.
    """

    def __init__(self, run_id: str, folders: Sequence[Path]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), run_id, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End it without action, after this process has cleaned up."""
        self._process.communicate(b"dismissed")


def _watch(run_id: str, folders: Sequence[str]) -> None:
    if sys.stdin.buffer.read():
        return
    Processes(run_id).end()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(process: psutil.Process) -> bool:
    """A zombie counts as gone: it only waits for its parent to read its exit status."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(processes: set[psutil.Process], method: str) -> None:
    for process in processes:
        with suppress(psutil.Error):  # gone already
            getattr(process, method)()


def _wait(processes: set[psutil.Process], seconds: float) -> set[psutil.Process]:
    """Those still alive after at most `seconds`."""
    until = time.monotonic() + seconds
    while (left := {p for p in processes if _alive(p)}) and time.monotonic() < until:
        time.sleep(0.05)
    return left


if __name__ == "__main__":
    _watch(sys.argv[1], sys.argv[2:])
