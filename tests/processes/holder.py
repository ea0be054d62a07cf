"""Holds the lock of FOLDER: `python -m tests.processes.holder FOLDER [SECONDS TIMES]`.

Prints a line once it has it, and lets go when its standard input ends. With SECONDS and TIMES it
takes the lock so many times, waiting for its turn, and each time makes a file for that long that
may not be there already.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fednano_flwr.base.lock import FolderLock, LockedError


def main() -> None:
    folder = Path(sys.argv[1])
    if sys.argv[2:]:
        take_turns(folder, float(sys.argv[2]), int(sys.argv[3]))
        return
    with FolderLock(folder, print):
        # A program that this one starts lives on without the lock.
        child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
        print("holding", child.pid, flush=True)
        sys.stdin.read()
        child.kill()


def take_turns(folder: Path, seconds: float, times: int) -> None:
    inside = folder.with_name("inside")
    while times:
        try:
            with FolderLock(folder, print):
                inside.touch(exist_ok=False)
                time.sleep(seconds)
                inside.unlink()
        except LockedError:
            time.sleep(seconds)
            continue
        times -= 1


if __name__ == "__main__":
    main()
