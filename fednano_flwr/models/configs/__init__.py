"""Configs of published models, for `fednano size`: what their parts' shapes depend on.

Each is called by a short name; `_name_or_path` is its checkpoint on the hub. How a model runs
(rotary frequencies, masks, tokens) is left to transformers' defaults, so none is to be run.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped() -> tuple[str, ...]:
    """Short names of the configs."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.json")))
