"""Groups of equal reasons for failed clients or left-out questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

MOST_NAMES = 3
"""Shown of those who share a reason."""
Who = TypeVar("Who")


def without_numbers(reason: str) -> str:
    """The same text for reasons that differ only in numbers."""
    return re.sub(r"\d+(\.\d+)?", "#", reason)


def by_reason(
    failures: Iterable[tuple[Who, str]], key: Callable[[str], str] = without_numbers
) -> list[tuple[list[Who], str]]:
    """Who failed for each reason; of reasons with the same key the first is shown.

    Args:
        failures: who failed, and why.
        key: `str` where the numbers of a reason matter, as those of the clients that it names.
    """
    groups: dict[str, tuple[list[Who], str]] = {}
    for who, reason in failures:
        groups.setdefault(key(reason), ([], reason))[0].append(who)
    return list(groups.values())


def first_few(who: Sequence[str]) -> str:
    """The first few names: "client 0, client 1, client 2 and 37 more"."""
    more = len(who) - MOST_NAMES
    return ", ".join(who[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
