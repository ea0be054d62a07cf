"""Which models have passed `fednano check` on this machine, by what they are and by version."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

from fednano_flwr.base.files import replace_file
from fednano_flwr.base.resources import cache_folder
from fednano_flwr.config import ConfigError, Model
from fednano_flwr.models.bundle import open_whole
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.families import AUTO, find

PACKAGES = ("fednano-flwr", "transformers")


def architecture(checkpoint: ModelCheckpoint) -> str:
    """What stands for all models with the same config."""
    written = json.loads((checkpoint.folder / "config.json").read_text("utf-8"))
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


def remember(key: str, differences: Mapping[str, float]) -> None:
    """Keep that a checkpoint, by its fingerprint, or an architecture has passed."""
    file = _file(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(differences).encode())


def forget(key: str) -> None:
    """Forget an earlier pass."""
    _file(key).unlink(missing_ok=True)


def require_pass(model: Model) -> str:
    """Refuse a model of a family that is not listed before its check has passed.

    Returns:
        What was found, in words; "" of a listed family.

    Raises:
        ConfigError: with the command to run.
    """
    if model.family != AUTO:
        return ""
    checkpoint = open_whole(model.name, model.revision, model.family)
    if find(checkpoint.config.model_type):
        return ""
    family = f"model {model.name}: its family {checkpoint.config.model_type}"
    if _kept(checkpoint.fingerprint):
        return f"{family} has passed fednano check with this checkpoint"
    if _kept(architecture(checkpoint)):
        return f"{family} has passed fednano check with a small random model of its architecture"
    revision = f" --revision {model.revision}" if model.revision else ""
    raise ConfigError(
        f"{family} is not listed, and no check of it has passed on this machine with "
        f"{' and '.join(_versions())}; run: fednano check {model.name}{revision} --family {AUTO}"
    )


def _kept(key: str) -> bool:
    """Whether there is a pass; a file that is damaged is none."""
    try:
        return isinstance(json.loads(_file(key).read_text("utf-8")), dict)
    except (OSError, ValueError):
        return False


def folder() -> Path:
    """Where passes are kept."""
    return cache_folder() / "checks"


def _versions() -> list[str]:
    return [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]


def _file(key: str) -> Path:
    versions = "-".join(_versions()).replace(" ", "-")
    return folder() / f"{key}-{versions}.json"
