"""What a check has to say. A check that fails itself has something to say, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `problem`: a run that needs it fails; `warning`: it may, or is less safe.
        what: the key or file, and what is the matter with it.
        do: what to do about it; "" where nothing is to be done, or `what` says it.
    """

    level: Level
    what: str
    do: str = ""


Check = Callable[[], list[Finding]]


@dataclass(frozen=True)
class Section:
    """The findings of a theme."""

    theme: str
    findings: list[Finding]


def ok(what: str) -> Finding:
    return Finding("ok", what)


def warning(what: str, do: str = "") -> Finding:
    return Finding("warning", what, do)


def problem(what: str, do: str = "") -> Finding:
    return Finding("problem", what, do)


def look(name: str, check: Check) -> list[Finding]:
    """The findings of a check; whatever it raises is one.

    Args:
        name: what is looked at, in words.
    """
    try:
        return check()
    except Exception as error:
        if _for_people(error):
            return [problem(str(error))]
        if isinstance(error, ImportError):
            return [
                problem(
                    f"{name} could not be looked at: {error}",
                    "repair what is said of the versions above, then ask again",
                )
            ]
        return [
            problem(
                f"{name} could not be looked at: {type(error).__name__}: {error}",
                "look at the file or key that it names; where it names none, report this",
            )
        ]


def _for_people(error: Exception) -> bool:
    """Whether the project wrote the error's text, which then says what to do."""
    return type(error).__module__.partition(".")[0] == __name__.partition(".")[0]
