"""Which version of the code this is."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path


def code_of(folder: Path) -> str:
    """Of the names and contents of all Python files below, committed or not: 12 hex digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py"), key=lambda file: file.relative_to(folder).as_posix()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def commit_of(folder: Path) -> str | None:
    """`FEDNANO_COMMIT` where it is set (an app bundle has no history), else the folder's commit.

    None where the folder is not a Git checkout.
    """
    if commit := os.environ.get("FEDNANO_COMMIT"):
        return commit
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    commit = result.stdout.decode(errors="replace").strip()  # a tag may be in it
    return commit or None if result.returncode == 0 else None
