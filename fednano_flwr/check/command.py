"""Check a user's own checkpoint, or a small one of its architecture, and keep what passed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fednano_flwr.base.console import human_bytes
from fednano_flwr.check.compare import Comparison, HalvesError, compare
from fednano_flwr.check.shrink import write_shrunk
from fednano_flwr.config import Model
from fednano_flwr.config.machine import main_memory
from fednano_flwr.models import passed
from fednano_flwr.models.bundle import open_whole
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.families import AUTO
from fednano_flwr.models.size import FLOAT32, count
from fednano_flwr.models.weights import INDEX, SINGLE
from fednano_flwr.preflight import check_writable

SPARE = 2**30
"""Bytes for activations and what is imported."""


@dataclass(frozen=True)
class Checked:
    """What was compared, and what was found.

    Attributes:
        architecture: class in transformers.
        shrunk: why a small random model was compared; "" where it was the checkpoint itself.
    """

    family: str
    architecture: str
    shrunk: str
    comparison: Comparison


def check(model: Model, say: Callable[[str], None]) -> Checked:
    """Compare the halves of a model with the whole; a pass is kept, an earlier one forgotten.

    Args:
        say: takes lines for people, of what is being done.

    Raises:
        ConfigError: there is no such model, it cannot be used or cut, or a pass cannot be kept.
        HalvesError: the model or its halves do not run.
    """
    checkpoint = open_whole(model.name, model.revision, model.family)
    check_writable("FEDNANO_CACHE", passed.folder())
    shrunk = _why_shrunk(checkpoint)
    key = passed.architecture(checkpoint) if shrunk else checkpoint.fingerprint
    try:
        if shrunk:
            say(f"{shrunk}: a small random model of its architecture is made and compared")
            with tempfile.TemporaryDirectory() as folder:
                write_shrunk(checkpoint, Path(folder), main_memory().free)
                found = compare(ModelCheckpoint(folder, family=AUTO))
        else:
            say("the checkpoint itself is loaded, whole and in two halves")
            found = compare(checkpoint)
    except HalvesError:
        passed.forget(key)
        raise
    if found.passed:
        passed.remember(key, {one.name: one.found for one in found.differences})
    else:
        passed.forget(key)
    family = checkpoint.family
    return Checked(family.model_type, family.architecture, shrunk, found)


def _why_shrunk(checkpoint: ModelCheckpoint) -> str:
    """Why the checkpoint itself cannot be compared; "" where it can."""
    there = any((checkpoint.folder / name).exists() for name in (SINGLE, INDEX))
    if not (there or checkpoint.hub_id):
        return f"{checkpoint.folder} has no weights ({SINGLE} or {INDEX})"
    parts = count(checkpoint.config)
    needed = FLOAT32 * (parts.model + parts.token_embeddings) + SPARE
    free = main_memory().free
    if needed > free:
        return f"it takes {human_bytes(needed)} in float32, and {human_bytes(free)} are free"
    return ""
