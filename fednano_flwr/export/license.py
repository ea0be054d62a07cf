"""Under which license the base model is, as far as its own files say."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError

from fednano_flwr.models.source import snapshot

UNKNOWN = "unknown"
CARD = "README.md"
TEXTS = ("LICENSE*", "NOTICE*")
KNOWN = {"apache-2.0": r"Apache License\s+Version 2\.0", "mit": r"\bMIT License\b"}
"""The hub's name of a license to what its text begins with."""


@dataclass(frozen=True)
class License:
    """A base model's license.

    Attributes:
        head: lines for the head of a card.
        said: which it is and how that is known, in a sentence.
        texts: the model's files of its license and notices.
    """

    head: tuple[str, ...]
    said: str
    texts: tuple[Path, ...] = ()


def find_license(folder: Path | None, hub_id: str, revision: str = "") -> License:
    """Look in the model's folder, then on the hub (or its cache).

    Args:
        folder: of the model on this machine, None where it is not known.
        hub_id: "" where the model is not on the hub.
        revision: branch, tag or commit there.
    """
    found = _in_folder(folder) if folder else None
    if found is None and hub_id:
        with suppress(OSError, HFValidationError):  # not reached: the license stays unknown
            found = _in_folder(snapshot(hub_id, revision, [CARD, *TEXTS]))
    return found or License(
        (f"license: {UNKNOWN}",),
        "Its license is not known: neither a card that names one nor a text of one was found when "
        "this was written. Look it up before you pass this on.",
    )


def _in_folder(folder: Path) -> License | None:
    """What a card's head says, else what a text of a license shows; None without either."""
    texts = tuple(sorted(f for kind in TEXTS for f in folder.glob(kind) if f.is_file()))
    head = _head(folder / CARD)
    if re.fullmatch(r"[\w.-]+", head.get("license", "")):
        others = [f"{key}: {json.dumps(value)}" for key, value in head.items() if key != "license"]
        said = f"Its license, by its own card: {head['license']}."
        return License((f"license: {head['license']}", *others), said, texts)
    for text in texts:
        if text.name.startswith("LICENSE"):
            begins = _read(text)[:1000]
            name = next((name for name, says in KNOWN.items() if re.search(says, begins)), "other")
            return License(
                (f"license: {name}",), f"Its license, by its file {text.name}: {name}.", texts
            )
    return None


def _head(card: Path) -> dict[str, str]:
    """What the head of a card says of the license."""
    head = re.match(r"---\s*\n(.*?)\n---", _read(card), re.DOTALL) if card.is_file() else None
    lines = re.findall(r"^(license(?:_name|_link)?): *(.*?)\s*$", head[1], re.M) if head else []
    return {key: value.strip("\"'") for key, value in lines}


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
