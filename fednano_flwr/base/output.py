"""Write a folder as a whole or not at all; check its place and the disk's room before."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.files import fresh_folder, nearest

TEMPORARY_BYTES = 64 * 2**20
"""For the logs and sockets of Flower and Ray, and a copy of the app."""


class OutputError(ValueError):
    """A folder cannot be written; the message says why and what to do."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which is renamed to `out` when the block succeeds.

    It lies beside `out` until then. If the block fails or is interrupted, it is removed with the
    parent folders that were made for it. If `out` is a link, the folder linked to is meant.

    Raises:
        OutputError: `out` is there and not empty, or cannot be replaced.
        OSError: writing failed.
    """
    require_free(out)
    out = out.resolve()
    existing = nearest(out.parent)
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = fresh_folder(out.parent, f".{out.name}.", ".partial")
        yield partial
        require_free(out)
        os.replace(partial, out)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(out.parent, existing)


def require_free(out: Path) -> None:
    """Reject a path that is not free.

    Raises:
        OutputError: `out` is a file, a folder that is not empty, the current folder or a mount
            point, or its name is not UTF-8.
    """
    place = out.resolve()
    if os.fsencode(place) != str(place).encode(errors="replace"):
        raise OutputError(f"{out}: is not UTF-8, and Arrow and safetensors open no such files")
    if place.is_dir() and any(place.iterdir()):
        raise OutputError(f"{out}: the folder is not empty; give a new one, or empty it")
    if place.exists() and not place.is_dir():
        raise OutputError(f"{out} is a file; give a folder")
    if place == Path.cwd() or os.path.ismount(place):
        what = "the current folder" if place == Path.cwd() else "where a disk is mounted"
        raise OutputError(f"{out} is {what}; give a new folder in it, such as {out / 'new'}")


def require_temporary_room() -> Path:
    """The folder of temporary files.

    Raises:
        OutputError: there is none, or it lacks room for the files of Flower and Ray.
    """
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise OutputError(f"{error}; set TMPDIR to a folder with room") from None
    free = shutil.disk_usage(folder).free
    if free < TEMPORARY_BYTES:
        raise OutputError(
            f"no room in TMPDIR = {folder}: {human_bytes(free)} are free, and a run takes up to "
            f"{human_bytes(TEMPORARY_BYTES)}; set TMPDIR to another folder"
        )
    return folder


def require_space(out: Path, needed: int, what: str) -> None:
    """Reject an output that the disk cannot hold.

    Args:
        needed: bytes.

    Raises:
        OutputError: with both numbers.
    """
    folder = nearest(out)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{what} takes about {human_bytes(needed)}, and the disk of {folder} has "
            f"{human_bytes(free)} free; make room, or choose a folder on another disk"
        )


def _remove_empty(folder: Path, above: Path) -> None:
    """Remove the empty folders between an output and an existing folder above it."""
    folder = folder.absolute()
    while folder != above:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
