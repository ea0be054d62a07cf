"""What a manifest says of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def describe_file(file: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
