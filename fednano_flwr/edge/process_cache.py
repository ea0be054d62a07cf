"""What a process keeps of what it has made, the least recently used going first."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

R = TypeVar("R")


class Kept(Generic[R]):
    """`functools.lru_cache` with a bound that can be changed.

    Args:
        make: what is remembered; its arguments have to be hashable.
        most: results kept.
    """

    def __init__(self, make: Callable[..., R], most: int) -> None:
        self.make = make
        self.most = most
        self._cached = lru_cache(maxsize=most)(make)

    def __call__(self, *arguments: Any) -> R:
        return self._cached(*arguments)

    def keep(self, most: int) -> None:
        """Keep so many from now on; another bound than before forgets what was kept."""
        if most != self.most:
            self.most = most
            self._cached = lru_cache(maxsize=most)(self.make)

    def cache_clear(self) -> None:
        self._cached.cache_clear()


def kept(most: int) -> Callable[[Callable[..., R]], Kept[R]]:
    """Decorator: remember this many results of a function."""
    return lambda make: Kept(make, most)
