"""What the dataset loaders share: reading JSON, ordering ids, and judging a raw question."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.prompts import LETTERS
from fednano_flwr.data.sample import Sample

MISSING_PICTURE = "picture file is missing"
UNNAMED_PICTURE = "picture is not given as a file name"

NAMES_SHOWN = 5
"""Files that an error names of what a folder holds."""
OWN_QUESTIONS = (
    "Questions of your own are read in ScienceQA's layout: 'Your own questions' in docs/data.md "
    "shows how to write it."
)
TWICE = ("two different values",)
"""What a name stands for that a JSON object has twice."""
LONGEST_NUMBER = 100
"""Digits of an id that is ordered as a number."""

_NO_CHARACTER = re.compile(r"[\0\ud800-\udfff]")
_PICTURE_NAME = re.compile(r"\S+\.(png|jpe?g|gif|bmp|webp)", re.IGNORECASE)


class Reading(NamedTuple):
    """One split being read: how many problems there are, and each as it comes.

    `problems` yields an id with its sample, or with the reason why it is left out.
    """

    total: int
    problems: Iterator[tuple[str, Sample | str]]


class Source(Protocol):
    """A dataset that has been found; nothing but its layout has been looked at.

    `identity` yields lines that change whenever a file that `read` depends on does. `revision` is
    its commit on the hub, "" of a folder.
    """

    name: ClassVar[str]

    @property
    def revision(self) -> str: ...
    @property
    def place(self) -> str: ...
    def check_split(self, split: str) -> None: ...
    def identity(self, split: str) -> Iterable[str]: ...
    def read(self, split: str) -> Reading: ...


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
    """Path, size in bytes and time of change of a file, or of each file below a folder.

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
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, in UTF-8 or in what its first bytes say.

    Where an object has a name twice with different values, the name's value is `TWICE`. A whole
    number of more digits than Python reads is infinite. Neither fits any field.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_object, parse_int=_whole_number)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError too
        raise DataError(
            f"{path} is not valid JSON ({error}). Unpack the dataset again, or repair this file."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} should hold a JSON object, and holds a {type(content).__name__}.")
    return content


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


def split_ids(pid_splits: dict[str, Any], key: str, path: Path) -> list[str]:
    """The question ids that `pid_splits[key]` lists, in `id_order`, each once.

    Raises:
        DataError: the key is not there or is not a list; `path` is the file to name.
    """
    listed = pid_splits.get(key)
    if not isinstance(listed, list):
        there = ", ".join(sorted(pid_splits)) or "none"
        raise DataError(f"{path} should list question ids under '{key}'; its keys are: {there}.")
    return sorted({str(pid) for pid in listed}, key=id_order)


def id_order(pid: str) -> tuple[bool, int, str]:
    """Sort key that puts 2 before 10, and ids that are no numbers last."""
    number = pid.isdecimal() and len(pid) <= LONGEST_NUMBER
    return (not number, int(pid) if number else 0, pid)


def question_defect(raw: Mapping[str, Any], *optional: str) -> str | None:
    """Why `raw` is no multiple-choice question that a prompt can hold, or None if it is one.

    Args:
        raw: `question` (text), `choices` (list of texts), `answer` (index), as both datasets name
            them.
        optional: names of texts that may be absent.
    """
    return _options_defect(raw, optional, "choices are pictures", _is_picture_name)


def picture_choice_defect(raw: Mapping[str, Any], *optional: str) -> str | None:
    """As `question_defect`, where `choices` are names of image files."""
    return _options_defect(raw, optional, UNNAMED_PICTURE, lambda name: not is_file_name(name))


def free_answer_defect(raw: Mapping[str, Any], *optional: str) -> str | None:
    """As `question_defect`, where `answer` is the text of a free answer."""
    return _texts_defect(raw, optional) or text_defect("answer", raw.get("answer"))


def sample_defect(sample: Sample) -> str | None:
    """Which field of a sample a prompt or a table cannot hold, and why; None if all are sound."""
    texts = {name: getattr(sample, name) for name in ("uid", "question", "group", "subject")}
    optional = {name: getattr(sample, name) for name in ("free_answer", "context")}
    texts |= {name: value for name, value in optional.items() if value != ""}
    texts |= {f"choice {number}": choice for number, choice in enumerate(sample.choices, start=1)}
    for name, value in texts.items():
        if defect := text_defect(name, value):
            return defect
    options, answer = sample.num_options, sample.answer
    sound = answer is None if not options else type(answer) is int and 0 <= answer < options
    return None if sound else "answer is not one of the choices"


def text_defect(name: str, value: Any) -> str | None:
    """Why a value is no text that a prompt and a table can hold, or None if it is one."""
    if is_absent(value):
        return f"{name} has no text"
    if not isinstance(value, str):
        return f"{name} is not text"
    return f"{name} has a character that is none" if _NO_CHARACTER.search(value) else None


def is_absent(value: Any) -> bool:
    """Whether an optional value is not given: None, NaN (an empty cell of a table) or blank."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_file_name(name: Any) -> TypeGuard[str]:
    """Whether `name` names a file in the question's own folder, and none elsewhere."""
    plain = isinstance(name, str) and name not in ("", ".", "..") and "\0" not in name
    return plain and Path(name).name == name


def is_there(file: Path) -> bool:
    """Whether it is a file; one that the system refuses to look at is none."""
    try:
        return file.is_file()
    except (OSError, ValueError):  # no permission, too long a name
        return False


def _texts_defect(raw: Mapping[str, Any], optional: Iterable[str]) -> str | None:
    given = (name for name in optional if not is_absent(raw.get(name)))
    defects = (text_defect(name, raw.get(name)) for name in ("question", *given))
    return next(filter(None, defects), None)


def _options_defect(
    raw: Mapping[str, Any], optional: Iterable[str], reason: str, unfit: Callable[[str], object]
) -> str | None:
    """Of a question with options; `reason` is given where one of them is unfit."""
    choices, answer = raw.get("choices"), raw.get("answer")
    if defect := _texts_defect(raw, optional):
        return defect
    if choices is not None and not isinstance(choices, list):
        return "choices are not a list"
    if not choices or len(choices) < 2:
        return "fewer than two choices"
    if len(choices) > len(LETTERS):
        return f"more than {len(LETTERS)} choices"
    if any(text_defect("choice", choice) for choice in choices):
        return "a choice is not text"
    if any(map(unfit, choices)):
        return reason
    if type(answer) is not int or not 0 <= answer < len(choices):
        return "answer is not one of the choices"
    return None


def _is_picture_name(choice: str) -> bool:
    return _PICTURE_NAME.fullmatch(choice.strip()) is not None


def describe_skipped(skipped: Counter[str]) -> str:
    """The skip reasons in one line, most frequent first: "521 picture file is missing; …"."""
    ranked = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason}" for reason, count in ranked) or "none"
