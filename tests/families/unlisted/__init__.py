"""Tiny random checkpoints of families that are not listed, one file each, for `auto`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

UNLISTED: dict[str, Callable[[], tuple[Any, Any]]] = {
    module.name: import_module(f"{__name__}.{module.name}").make
    for module in iter_modules(__path__)
}
"""What makes a config and a processor, by `model_type`."""


def write_unlisted(model_type: str, folder: Path) -> Path:
    """Write a random checkpoint with its processor."""
    config, processor = UNLISTED[model_type]()
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
