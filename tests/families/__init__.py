"""A tiny random checkpoint of every family that is cut, one file a family.

A file is called as its family's in `fednano_flwr/models/families/` and has a `TINY`, or a tuple of
them where a family's checkpoints differ in what they need. Tests that take long run on `CORE` in
`make test` and on all families in `make slow`; a short one of each family's logits, gradients and
generated answer is always run.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import torch

from tests.families.base import TinyFamily
from tests.tiny import write_checkpoint

__all__ = ["CORE", "TINY", "every", "save", "write"]
CORE = ("llava", "qwen2_5_vl", "gemma3", "blip-2")
"""One of each kind: plain, positions on three axes, token types and windows, learned positions."""
TINY: dict[str, TinyFamily] = {}
for _module in iter_modules(__path__):
    _found = getattr(import_module(f"{__name__}.{_module.name}"), "TINY", ())
    TINY |= {_tiny.name: _tiny for _tiny in (_found if isinstance(_found, tuple) else (_found,))}


def every(*more: str, but: tuple[str, ...] = ()) -> list[Any]:
    """Parameters of a test on each family and on `more`; slow ones but for `CORE` and `more`."""
    slow = [pytest.param(f, marks=pytest.mark.slow) for f in TINY if f not in (*CORE, *but)]
    return [*(f for f in CORE if f not in but), *slow, *more]


def write(family: str, folder: Path, seed: int = 0, shard_size: str = "100KB") -> Path:
    """Write a random checkpoint of `family`, several shards, with its processor."""
    if family == "llava":
        return write_checkpoint(folder, seed, shard_size)
    return save(family, folder, *TINY[family].make(), seed, shard_size)


def save(
    family: str,
    folder: Path,
    config: Any,
    processor: Any,
    seed: int = 0,
    shard_size: str = "100KB",
) -> Path:
    """Write a random model of this config, with its processor."""
    torch.manual_seed(seed)
    model = TINY[family].family.model_class(config)
    with torch.no_grad():  # parameters that start as zeros would hide what depends on them
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
        TINY[family].adjust(model)
    model.save_pretrained(folder, max_shard_size=shard_size)
    processor.save_pretrained(folder)
    return folder
