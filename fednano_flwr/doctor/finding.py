"""What a check has to say. A check that fails itself has something to say, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fednano_flwr.preflight import Check

Level = Literal["ok", "warning", "problem"]
TO_DOWNLOAD = "a run downloads it at its start; hf download fetches it before, or give a folder"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `problem`: a run that needs it fails; `warning`: it may, or is less safe.
        what: the key or file, and what is wrong with it.
        do: what to do about it; "" where nothing is to be done, or `what` says it.
    """

    level: Level
    what: str
    do: str = ""


@dataclass(frozen=True)
class Section:
    """The findings of a theme."""

    theme: str
    findings: list[Finding]


Look = Check[list[Finding]]
"""A check of doctor's own, which may have several findings or none."""


def ok(what: str) -> Finding:
    return Finding("ok", what)


def warning(what: str, do: str = "") -> Finding:
    return Finding("warning", what, do)


def problem(what: str, do: str = "") -> Finding:
    return Finding("problem", what, do)


def look(check: Check[str] | Look, downloads: bool = False) -> list[Finding]:
    """The findings of a check; whatever it raises is one.

    Args:
        downloads: a run may ask the hub for what this machine's cache lacks.
    """
    try:
        found = check.find()
    except Exception as error:
        return [_of_error(check.subject, error, downloads)]
    if isinstance(found, str):
        return [ok(found)] if found else []
    return found


def _of_error(subject: str, error: Exception, downloads: bool) -> Finding:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause = error.__cause__
    if downloads and isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        what = f"{subject}: not in this machine's Hugging Face cache ({error})"
        return warning(what, TO_DOWNLOAD)
    if type(error).__module__.partition(".")[0] == __name__.partition(".")[0]:
        what, _, do = str(error).partition("; ")  # the project wrote it for people
        return problem(what, do)
    do = "look at the file or key that it names; where it names none, report this"
    if isinstance(error, ImportError):
        do = "repair what is said of the versions above, and ask again"
    return problem(f"{subject} could not be looked at: {type(error).__name__}: {error}", do)
