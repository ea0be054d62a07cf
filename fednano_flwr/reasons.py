"""Reasons why clients failed or questions were left out, each said once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

MOST_NAMES = 3
"""Shown of those who share a reason."""
Who = TypeVar("Who")


def by_reason(failures: Iterable[tuple[Who, str]]) -> list[tuple[list[Who], str]]:
    """Who failed for each reason; of reasons that differ in numbers alone the first counts.

    Args:
        failures: who failed, and why.
    """
    groups: dict[str, tuple[list[Who], str]] = {}
    for who, reason in failures:
        groups.setdefault(without_numbers(reason), ([], reason))[0].append(who)
    return list(groups.values())


def without_numbers(reason: str) -> str:
    """The same text for reasons that differ in numbers alone."""
    return re.sub(r"\d+(\.\d+)?", "#", reason)


def first_few(who: Sequence[str]) -> str:
    """The first few names: "client 0, client 1, client 2 and 37 more"."""
    more = len(who) - MOST_NAMES
    return ", ".join(who[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
