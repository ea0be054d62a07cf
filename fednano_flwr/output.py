"""Folders that a command writes: whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OutputError(ValueError):
    """A folder cannot be written; the message says why and what to do."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place `out` when the block ends well.

    It lies beside `out` until then, and is removed where the block fails or is interrupted.

    Raises:
        OutputError: `out` is there and not empty, or nothing can be written beside it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is there already; choose another folder, or remove it first")
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        partial.chmod(0o755)  # a temporary folder is the owner's alone
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def require_space(out: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        needed: bytes.

    Raises:
        OutputError: with both numbers.
    """
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{what} takes about {needed / 1e9:.2f} GB, and the disk of {folder} has "
            f"{free / 1e9:.2f} GB free; make room, or choose a folder on another disk"
        )
