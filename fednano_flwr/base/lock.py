"""A lock on a folder, which ends with the process that holds it.

    with FolderLock(folder, say):
        ...

The kernel releases the lock when its holder ends, also by SIGKILL or a power failure; a file
`.lock` alone is no lock. Between machines it holds only on network file systems that support locks
(NFS with lockd, not mounted with `nolock` or `local_lock`).
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
TAKEN = (errno.EAGAIN, errno.EACCES)


class LockedError(RuntimeError):
    """Another process writes to the folder; the message names it if it is known."""


class FolderLock:
    """Held from its construction until `release`, or the end of the process.

    Args:
        folder: made if it does not exist.
        say: prints a warning if the file system has no locks.

    Raises:
        LockedError: it is held already, by another process or in this one.
        OSError: the folder cannot be made, or not be written to.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.file = folder / LOCK
        self._number: int | None = None
        self._made = [one for one in (folder, *folder.parents) if not one.exists()]
        while self._number is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:  # a file; or who had it has just removed the empty folder
                if folder.exists() and not folder.is_dir():
                    raise
                continue
            try:
                number, mine = self._open()
            except FileNotFoundError:  # who had it has just removed the empty folder
                continue
            try:
                self._lock(number, say)
                if not mine:  # another user left it behind: one of our own takes its place
                    self.file.unlink()
                elif self._is(number):
                    self._write_holder(number)
                    self._number = number
            finally:
                if self._number is None:
                    os.close(number)

    def _open(self) -> tuple[int, bool]:
        """The lock's file, and whether this user may write to it.

        It is not inherited by programs that this one starts: they would hold the lock as well.
        """
        try:
            return os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644), True
        except PermissionError:
            if not self.file.exists():  # it is the folder that cannot be written to
                raise
            return os.open(self.file, os.O_RDONLY), False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Unlock the folder, and remove it if it was made for the lock and is still empty."""
        if self._number is None:
            return
        with suppress(OSError):  # the folder has been removed, or has become read-only
            if self._is(self._number):
                self.file.unlink()
        os.close(self._number)
        self._number = None
        with suppress(OSError):  # it is not empty
            for folder in self._made:
                folder.rmdir()

    def __del__(self) -> None:
        if getattr(self, "_number", None) is not None:
            os.close(self._number)  # type: ignore[arg-type]

    def _lock(self, number: int, say: Callable[[str], None]) -> None:
        folder = self.file.parent
        if fcntl is None:
            say(f"warning  this system cannot lock {folder}: start no second run that writes there")
            return
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                raise LockedError(f"{folder} is being written by {_holder(number)}") from None
            say(
                f"warning  {folder} cannot be locked ({error}): start no second run that writes "
                "there"
            )

    def _is(self, number: int) -> bool:
        """Whether the file is still the one that was opened: who had it before may remove it."""
        try:
            return os.path.samestat(os.stat(self.file), os.fstat(number))
        except FileNotFoundError:
            return False

    def _write_holder(self, number: int) -> None:
        """Write who holds the lock, for the error of other processes."""
        who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        os.ftruncate(number, 0)
        os.write(number, (json.dumps(who) + "\n").encode())


def _holder(number: int) -> str:
    """Who holds the lock, as far as the file says."""
    try:
        who = json.loads(os.pread(number, 4096, 0))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
