"""Files that are whole or not there, and what a manifest says of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any


def describe_file(file: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def write_synced(file: Path, data: bytes) -> None:
    """Write a file that is on the disk, and not only on its way there, when this returns."""
    with file.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace_file(file: Path, data: bytes) -> None:
    """Put a whole file in the place of the one before, also where the power fails on the way."""
    partial = file.with_suffix(".partial")
    write_synced(partial, data)
    partial.replace(file)
    sync_folder(file.parent)
