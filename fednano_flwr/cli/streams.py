"""Standard output and error that a command survives losing: a closed pipe, a full disk."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any

NOBODY_READS = (errno.EPIPE, errno.EIO)  # a pipe that was closed, a terminal that is gone


class _Stream(io.FileIO):
    """A file descriptor that discards all output after its first failed write."""

    def __init__(self, number: int, lost: Callable[[OSError], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._lost = lost

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _to_nowhere(self.fileno())
            self._lost(error)
            return len(data)


def lasting_streams() -> Callable[[], bool]:
    """Replace `sys.stdout` and `sys.stderr`, for the rest of this process.

    If nobody reads standard output any more, standard error says so once and the command goes on.
    Characters that the encoding lacks are replaced.

    Returns:
        Whether output was lost for another reason: a full disk, for one.
    """
    broken: list[OSError] = []

    def lost(error: OSError) -> None:
        broken.append(error)
        if error.errno in NOBODY_READS:
            print("note: nobody reads the output any more; the work goes on", file=sys.stderr)
        else:
            print(f"note: the output cannot be written: {error.strerror}", file=sys.stderr)

    for name, number, on_loss in (("stdout", 1, lost), ("stderr", 2, lambda error: None)):
        old = getattr(sys, name)
        if old is None:  # it was closed when the process began
            _to_nowhere(number)
        else:
            old.flush()
        stream = io.TextIOWrapper(
            io.BufferedWriter(_Stream(number, on_loss)),
            encoding=getattr(old, "encoding", None) or "utf-8",
            errors="replace" if name == "stdout" else "backslashreplace",
            line_buffering=getattr(old, "line_buffering", False),
            write_through=getattr(old, "write_through", False),
        )
        setattr(sys, name, stream)

    def failed() -> bool:
        sys.stdout.flush()
        return any(error.errno not in NOBODY_READS for error in broken)

    return failed


def _to_nowhere(number: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)
