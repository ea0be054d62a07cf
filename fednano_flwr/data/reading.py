"""What sources read with: folders, JSON files, and the order of ids."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fednano_flwr.data.errors import DataError

NAMES_SHOWN = 5
"""Files that an error names of what a folder holds."""
TWICE = ("two different values",)
"""What a name stands for that a JSON object has twice."""
LONGEST_NUMBER = 100
"""Digits of an id that is ordered as a number."""


def names_in(folder: Path) -> str:
    """The first names in a folder, for people.

    Raises:
        DataError: as `entries`.
    """
    names = [entry.name for entry in entries(folder)]
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if names[NAMES_SHOWN:] else "") or "nothing"


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in order of the names.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror or error}. Repair it, or set dataset.path "
            "to another copy."
        ) from error


def files_below(path: Path) -> Iterator[str]:
    """Path, size in bytes and times of change of a file, or of each file below a folder.

    The time at which the content changed can be set by hand, as copying tools do; the system's own
    time of change cannot.

    Raises:
        DataError: as `entries`.
    """
    if path.is_dir():
        for entry in entries(path):
            if entry.is_dir():
                yield from files_below(Path(entry.path))
            else:
                yield _file_line(entry.path, entry)
    elif path.exists():
        yield _file_line(str(path), path)


def _file_line(name: str, file: os.DirEntry[str] | Path) -> str:
    try:
        status = file.stat()
    except OSError:  # a link that leads nowhere
        return f"{name} gone"
    return f"{name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def is_there(file: Path) -> bool:
    """Whether it is a file; one that the system refuses to look at is none."""
    try:
        return file.is_file()
    except (OSError, ValueError):  # no permission, too long a name
        return False


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, in UTF-8 or in what its first bytes say.

    Where an object has a name twice with different values, the name's value is `TWICE`. A whole
    number of more digits than Python reads is infinite. Neither fits any field.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or holds something else.
    """
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError too
        raise DataError(
            f"{path} is not valid JSON ({error}). Unpack the dataset again, or repair this file."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} should hold a JSON object, and holds a {type(content).__name__}.")
    return content


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, but for names that an object has twice and for numbers of too many digits.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = TWICE if name in found and found[name] != value else value
    return found


def _whole_number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_number)
"""Of one value after the other; reads them as `parse_json`."""


def split_ids(file: Path, key: str) -> list[str]:
    """The question ids that a JSON file lists under `key`, in `id_order`, each once.

    Raises:
        DataError: the file cannot be read, or has no such list.
    """
    content = read_json_object(file)
    listed = content.get(key)
    if not isinstance(listed, list):
        there = ", ".join(sorted(content)) or "none"
        raise DataError(f"{file} should list question ids under '{key}'; its keys are: {there}.")
    return sorted({str(pid) for pid in listed}, key=id_order)


def id_order(pid: str) -> tuple[bool, int, str]:
    """Sort key that puts 2 before 10, and ids that are no numbers last."""
    number = pid.isdecimal() and len(pid) <= LONGEST_NUMBER
    return (not number, int(pid) if number else 0, pid)
