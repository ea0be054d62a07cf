"""What the dataset loaders share: reading JSON, ordering ids, and judging a raw question."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.prompts import LETTERS
from fednano_flwr.data.sample import Sample

MISSING_PICTURE = "picture file is missing"
UNNAMED_PICTURE = "picture is not given as a file name"

_PICTURE_NAME = re.compile(r"\S+\.(png|jpe?g|gif|bmp|webp)", re.IGNORECASE)


class Reading(NamedTuple):
    """One split being read: how many problems there are, and each as it comes.

    `problems` yields an id with its sample, or with the reason why it is left out.
    """

    total: int
    problems: Iterator[tuple[str, Sample | str]]


class Source(Protocol):
    """A dataset that has been found; nothing but its layout has been looked at.

    `identity` yields lines that change whenever a file that `read` depends on does.
    """

    name: ClassVar[str]

    @property
    def place(self) -> str: ...
    def check_split(self, split: str) -> None: ...
    def identity(self, split: str) -> Iterable[str]: ...
    def read(self, split: str) -> Reading: ...


def files_below(path: Path) -> Iterator[str]:
    """Path, size in bytes and time of change of a file, or of each file below a folder."""
    if path.is_dir():
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_dir():
                yield from files_below(Path(entry.path))
            else:
                yield _file_line(entry.path, entry)
    elif path.exists():
        yield _file_line(str(path), path)


def _file_line(name: str, file: os.DirEntry[str] | Path) -> str:
    try:
        status = file.stat()
    except FileNotFoundError:  # a link that leads nowhere
        return f"{name} gone"
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError too
        raise DataError(
            f"{path} is not valid JSON ({error}). Unpack the dataset again, or repair this file."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} should hold a JSON object, and holds a {type(content).__name__}.")
    return content


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
    return (not pid.isdecimal(), int(pid) if pid.isdecimal() else 0, pid)


def question_defect(raw: dict[str, Any]) -> str | None:
    """Why `raw` is no multiple-choice question that a prompt can hold, or None if it is one.

    Args:
        raw: `question` (text), `choices` (list of texts), `answer` (index), as both datasets name
            them.
    """
    return _options_defect(raw, "choices are pictures", _is_picture_name)


def picture_choice_defect(raw: dict[str, Any]) -> str | None:
    """As `question_defect`, where `choices` are names of image files."""
    return _options_defect(raw, UNNAMED_PICTURE, lambda choice: not is_file_name(choice))


def free_answer_defect(raw: dict[str, Any]) -> str | None:
    """As `question_defect`, where `answer` is the text of a free answer."""
    if not _is_text(raw.get("question")):
        return "question has no text"
    return None if _is_text(raw.get("answer")) else "answer has no text"


def is_file_name(name: Any) -> bool:
    """Whether `name` names a file in the question's own folder, and none elsewhere."""
    plain = isinstance(name, str) and name not in ("", ".", "..") and "\0" not in name
    return plain and Path(name).name == name


def _options_defect(raw: dict[str, Any], reason: str, unfit: Callable[[str], object]) -> str | None:
    """Of a question with options; `reason` is given where one of them is unfit."""
    choices, answer = raw.get("choices"), raw.get("answer")
    if not _is_text(raw.get("question")):
        return "question has no text"
    if not isinstance(choices, Sequence) or isinstance(choices, str) or len(choices) < 2:
        return "fewer than two choices"
    if len(choices) > len(LETTERS):
        return f"more than {len(LETTERS)} choices"
    if not all(map(_is_text, choices)):
        return "a choice is not text"
    if any(map(unfit, choices)):
        return reason
    if type(answer) is not int or not 0 <= answer < len(choices):
        return "answer is not one of the choices"
    return None


def _is_picture_name(choice: str) -> bool:
    return _PICTURE_NAME.fullmatch(choice.strip()) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def describe_skipped(skipped: Counter[str]) -> str:
    """The skip reasons in one line, most frequent first: "521 picture file is missing; …"."""
    ranked = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason}" for reason, count in ranked) or "none"
