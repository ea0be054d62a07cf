"""What the dataset loaders share: reading JSON, ordering ids, and judging a raw question."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.prompts import LETTERS

MISSING_PICTURE = "picture file is missing"

_PICTURE_NAME = re.compile(r"\S+\.(png|jpe?g|gif|bmp|webp)", re.IGNORECASE)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
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
    question, choices, answer = raw.get("question"), raw.get("choices"), raw.get("answer")
    if not isinstance(question, str) or not question.strip():
        return "question has no text"
    if not isinstance(choices, list) or len(choices) < 2:
        return "fewer than two choices"
    if len(choices) > len(LETTERS):
        return f"more than {len(LETTERS)} choices"
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "a choice is not text"
    if any(_PICTURE_NAME.fullmatch(choice.strip()) for choice in choices):
        return "choices are pictures"
    if type(answer) is not int or not 0 <= answer < len(choices):
        return "answer is not one of the choices"
    return None


def describe_skipped(skipped: Counter[str]) -> str:
    """The skip reasons in one line, most frequent first: "521 picture file is missing; …"."""
    ranked = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason}" for reason, count in ranked) or "none"
