"""LLaVA: `tests.tiny` writes it."""

from __future__ import annotations

from typing import Any

from tests.families.base import TinyFamily


def make() -> tuple[Any, Any]:
    raise NotImplementedError("tests.tiny.write_checkpoint")


TINY = TinyFamily("llava", make)
