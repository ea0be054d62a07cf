"""Ray starts a second time where its own time limit was too short for a busy machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import ray

Started = TypeVar("Started")


def second_chance(start: Callable[[], Started]) -> Started:
    """What `start` returns, at the second try if the first fails, as in `fednano run`."""
    try:
        return start()
    except Exception:
        ray.shutdown()
        return start()
