"""What a row's cells hold, as the fields of a sample."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from fednano_flwr.base.files import check_name
from fednano_flwr.data.defects import MISSING, DefectError, is_absent
from fednano_flwr.data.sample import MediaFile

OUTSIDE = "{}'s path leads out of its file's folder"
ADDRESS = "{} is given by an address, and only files are read"
NO_FILE = "{} is neither a path nor a file's bytes"
File = TypeVar("File", bound=MediaFile)
ADDRESSES = ("http:", "https:", "data:", "file:", "s3:", "gs:")


def files(kind: type[File], values: Sequence[Any], folder: Path) -> tuple[File, ...]:
    """Pictures or sounds as cells hold them.

    Each is a path that starts from `folder`, a file's bytes, or both as `datasets` writes them:
    {"bytes": …, "path": …}.

    Raises:
        DefectError: one is of another form, or leads out of the folder.
    """
    return tuple(_file(kind, value, folder) for value in values)


def _file(kind: type[File], value: Any, folder: Path) -> File:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
        if value is None:
            raise DefectError(MISSING.format(kind.noun))
    if isinstance(value, bytes) and value:
        return kind(data=value)
    if not isinstance(value, str) or is_absent(value):
        raise DefectError(NO_FILE.format(kind.noun))
    if value.lower().startswith(ADDRESSES):
        raise DefectError(ADDRESS.format(kind.noun))
    name = value.removeprefix(f"{folder}/")  # an absolute path may lead there, too
    try:
        check_name(name)
    except ValueError:
        raise DefectError(OUTSIDE.format(kind.noun)) from None
    return kind(folder / name)


def listed(value: Any) -> list[Any]:
    """The values of a cell that may hold one, several or none."""
    if isinstance(value, list):
        return value
    return [] if is_absent(value) else [value]


def parsed(text: str) -> Any:
    """The list of texts that a text is, as Python and JSON write it; any other text is itself."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if texts else text


def further(answers: Sequence[str], answer: str) -> tuple[str, ...]:
    """The other right answers, each as often as it is given; `answer` is among them once less."""
    rest = list(answers)
    if answer in rest:
        rest.remove(answer)
    return tuple(rest)


def number(value: Any) -> int | None:
    """A whole number, which a column with empty cells may hold as 1.0; None of anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int else None


def label(value: Any, role: str, column: str, classes: Sequence[str] = ()) -> str:
    """A cell as a group or a subject; "no <column>" where it is empty.

    Raises:
        DefectError: it is no text, number or class.
    """
    if is_absent(value):
        return f"no {column}"
    if classes and type(value) is int and 0 <= value < len(classes):
        return classes[value]
    if (whole := number(value)) is not None:
        return str(whole)
    if isinstance(value, str | bool):
        return str(value)
    raise DefectError(f"{role} is not text")
