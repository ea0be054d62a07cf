"""Atomic and synced writes, a manifest's entry of a file, and checks of names from elsewhere."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

SHOWN = 200
"""Characters of a name that an error repeats."""
LONGEST_NAME = 255
"""Bytes of a name, as Linux and macOS have it."""


def inside(folder: Path, name: object) -> Path:
    """The path of a file in `folder` whose name was read from an untrusted file.

    Raises:
        ValueError: it is no name, is absolute, goes up, or is a link that leads out of the folder.
    """
    check_name(name)
    file = folder / str(name)
    try:
        leads_out = not file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle, a name too long
        raise ValueError(f"the name {str(name)[:SHOWN]!r} cannot be followed: {error}") from None
    if leads_out:
        raise ValueError(f"{str(name)[:SHOWN]!r} is a link that leads out of its folder")
    return file


def check_name(name: object) -> None:
    """Reject a name that is no relative path or leads out of its folder.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{str(name)[:SHOWN]!r} is no file's name")
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\\" in name:
        raise ValueError(f"the name {name[:SHOWN]!r} leads out of its folder")


def is_folder_name(name: str) -> bool:
    """Whether a folder inside another can have this name, and a line of text can show it."""
    return (
        name not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and name.isprintable()  # neither line breaks nor bytes that are no UTF-8
        and name == name.strip()
        and len(name.encode()) <= LONGEST_NAME
    )


def fresh_folder(parent: Path, prefix: str, suffix: str = "") -> Path:
    """Make a folder of a unique name, with the permissions of the user's umask.

    Raises:
        OSError: it cannot be made.
    """
    folder = parent / f"{prefix}{secrets.token_hex(8)}{suffix}"
    folder.mkdir()
    return folder


def write_once(folder: Path, write: Callable[[Path], object]) -> None:
    """Make a folder unless it exists, as a whole or not at all.

    `write` fills a folder beside it, which is then renamed. A process that dies leaves no half of
    it; of several processes the first to finish wins.

    Raises:
        OSError: it cannot be made.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = fresh_folder(folder.parent, f"{folder.name}.")
    try:
        write(partial)
        os.rename(partial, folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def nearest(path: Path) -> Path:
    """The path itself, or the nearest existing one above it."""
    path = path.expanduser().absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def describe_file(file: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def write_synced(file: Path, data: bytes) -> None:
    """Write a file, and return when it is on the disk."""
    _write(file, "wb", data)


def append_synced(file: Path, data: bytes) -> None:
    """Append to a file, and return when that is on the disk."""
    _write(file, "ab", data)


def _write(file: Path, mode: str, data: bytes) -> None:
    with file.open(mode) as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace_file(file: Path, data: bytes) -> None:
    """Replace a file as a whole, also if the power fails meanwhile."""
    partial = file.with_suffix(".partial")
    write_synced(partial, data)
    partial.replace(file)
    sync_folder(file.parent)
