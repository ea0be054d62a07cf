"""What a run has come to, as far as it must not depend on how it got there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

MEASURED = {"seconds", "client_seconds", "peak_memory_mb", "memory_mb", "features"}
"""What a round's record says of this one execution of it, beside bytes, calls and retries."""


def adapters(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    """NanoAdapters, and the LoRA inside the language model where there is one."""
    files = (folder / "adapters" / which).rglob("adapter_model.safetensors")
    return {key: value for file in sorted(files) for key, value in load_file(file).items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of learning."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    varies = ("round_bytes", "step_")
    return [
        {k: v for k, v in record.items() if k not in MEASURED and not k.startswith(varies)}
        for record in records
    ]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def assert_same_outcome(folder: Path, expected: Path) -> None:
    """Adapters to the last bit, and all that was learnt on the way."""
    for which in ("last", "best"):
        assert_same(adapters(folder, which), adapters(expected, which))
    assert lines(folder) == lines(expected)
    states = [json.loads((path / "state.json").read_text()) for path in (folder, expected)]
    assert states[0] == states[1]


def half_written(*folders: Path) -> list[str]:
    """Names of files and folders that are written beside their place, and of locks."""
    patterns = ("*.partial", "*.new", "*.old", ".lock")
    found = (file for folder in folders for one in patterns for file in folder.rglob(one))
    return sorted(file.name for file in found)
