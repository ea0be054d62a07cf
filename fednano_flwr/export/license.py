"""The base model's license, as far as its own files name it."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import metadata_load
from huggingface_hub.errors import HFValidationError

from fednano_flwr.models.source import snapshot

CARD = "README.md"
TEXTS = ("LICENSE*", "NOTICE*")
KNOWN = {"apache-2.0": r"Apache License\s+Version 2\.0", "mit": r"\bMIT License\b"}
"""The hub's name of a license to how its text begins."""


@dataclass(frozen=True)
class License:
    """A base model's license.

    Attributes:
        metadata: for the head of a card: `license`, `license_name`, `license_link`.
        source: the file that names it; "" where none does.
        texts: the model's files of its license and notices.
    """

    metadata: dict[str, str]
    source: str = ""
    texts: tuple[Path, ...] = ()


def find_license(folder: Path | None, hub_id: str, revision: str = "") -> License:
    """Look in the model's folder, then on the hub (or its cache).

    Args:
        folder: of the model on this machine; None if it is not known.
        hub_id: "" if the model is not on the hub.
        revision: branch, tag or commit there.
    """
    found = _in_folder(folder) if folder else None
    if found is None and hub_id:
        with suppress(OSError, HFValidationError):  # not reached: the license stays unknown
            found = _in_folder(snapshot(hub_id, revision, [CARD, *TEXTS]))
    return found or License({"license": "unknown"})


def _in_folder(folder: Path) -> License | None:
    """What a card's head names, else what the text of a license begins like."""
    texts = tuple(sorted(f for kind in TEXTS for f in folder.glob(kind) if f.is_file()))
    head: dict[str, object] = {}
    if (folder / CARD).is_file():
        with suppress(Exception):  # a head that cannot be read names no license
            head = metadata_load(folder / CARD) or {}
    named = {key: str(head[key]) for key in head if key.startswith("license") and head[key]}
    if "license" in named:
        return License(named, CARD, texts)
    for text in texts:
        if text.name.startswith("LICENSE"):
            begins = text.read_text(encoding="utf-8", errors="replace")[:1000]
            name = next((name for name, says in KNOWN.items() if re.search(says, begins)), "other")
            return License({"license": name}, text.name, texts)
    return None
