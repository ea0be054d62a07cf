"""Folders that a command writes: whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.files import fresh_folder

TEMPORARY_BYTES = 64 * 2**20
"""For the logs and sockets of Flower and Ray, and a copy of the app."""


class OutputError(ValueError):
    """A folder cannot be written; the message says why and what to do."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place `out` when the block ends well.

    It lies beside `out` until then, and is removed where the block fails or is interrupted, with
    the folders above it that had to be made. Where `out` is a link, it is the folder linked to.

    Raises:
        OutputError: `out` is there and not empty, or cannot be replaced.
        OSError: writing failed.
    """
    require_free(out)
    out = out.resolve()
    existing = _nearest(out.parent)
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
    """Refuse a place where something is.

    Raises:
        OutputError: `out` is a file, or a folder that is not empty, or one that no other can take
            the place of, or its name is not UTF-8.
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
    """Where temporary files go.

    Raises:
        OutputError: there is no such place, or it has no room for what Flower and Ray put there.
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
    """Refuse to begin what the disk cannot hold.

    Args:
        needed: bytes.

    Raises:
        OutputError: with both numbers.
    """
    folder = _nearest(out)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{what} takes about {human_bytes(needed)}, and the disk of {folder} has "
            f"{human_bytes(free)} free; make room, or choose a folder on another disk"
        )


def _nearest(path: Path) -> Path:
    """The folder itself or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _remove_empty(folder: Path, above: Path) -> None:
    """Remove the folders made on the way to an output, as far as they are empty."""
    folder = folder.absolute()
    while folder != above:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
