"""Why a raw question cannot be used, in words that questions are counted by."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

from fednano_flwr.data.prompts import LETTERS
from fednano_flwr.data.reading import is_there
from fednano_flwr.data.sample import MediaFile, Picture, Place, Sample, Sound, Turn

MISSING = "{} file is missing"
MISSING_PICTURE, MISSING_SOUND = MISSING.format("picture"), MISSING.format("sound")
UNNAMED_PICTURE = "picture is not given as a file name"
NOT_A_CHOICE = "answer is not one of the choices"
OTHER_PLACES = "it has another number of {}s than of places for them"


class DefectError(Exception):
    """Why one question cannot be used, in words that questions are counted by."""


_NO_CHARACTER = re.compile(r"[\0\ud800-\udfff]")
_PICTURE_NAME = re.compile(r"\S+\.(png|jpe?g|gif|bmp|webp)", re.IGNORECASE)


def question_defect(raw: Mapping[str, Any], *optional: str) -> str | None:
    """Why `raw` is no multiple-choice question that a prompt can hold, or None if it is one.

    Args:
        raw: `question` (text), `choices` (list of texts), `answer` (index).
        optional: names of texts that may be absent.
    """
    return _options_defect(raw, optional, "choices are pictures", _is_picture_name)


def picture_choice_defect(raw: Mapping[str, Any], *optional: str) -> str | None:
    """As `question_defect`, where `choices` are names of image files."""
    return _options_defect(raw, optional, UNNAMED_PICTURE, lambda name: not is_file_name(name))


def free_answer_defect(raw: Mapping[str, Any], *optional: str) -> str | None:
    """As `question_defect`, where `answer` is the text of a free answer."""
    return _texts_defect(raw, optional) or text_defect("answer", raw.get("answer"))


def choices_defect(choices: Any) -> str | None:
    """Why a value is no list of options in words, or None if it is one."""
    if choices is not None and not isinstance(choices, list):
        return "choices are not a list"
    if not choices or len(choices) < 2:
        return "fewer than two choices"
    texts = not any(text_defect("choice", choice) for choice in choices)
    return None if texts else "a choice is not text"


def sample_defect(sample: Sample) -> str | None:
    """Why a sample cannot be used, or None if it can.

    A field holds what a prompt or a table cannot hold, or a picture's file is not there.
    """
    texts = {name: getattr(sample, name) for name in ("uid", "question", "group", "subject")}
    if sample.turns and sample.turns[-1].places and is_absent(sample.question):
        del texts["question"]  # a picture or a sound alone
    optional = {name: getattr(sample, name) for name in ("free_answer", "context")}
    texts |= {name: value for name, value in optional.items() if value != ""}
    texts |= {f"choice {number}": choice for number, choice in enumerate(sample.choices, start=1)}
    turns = {f"turn {number}": turn.text for number, turn in enumerate(sample.turns, start=1)}
    texts |= {name: text for name, text in turns.items() if text}  # so in any
    texts |= {f"reference {number}": text for number, text in enumerate(sample.references, 1)}
    for name, value in texts.items():
        if defect := text_defect(name, value):
            return defect
    if sample.turns and (defect := places_defect(sample.turns, sample.images, sample.sounds)):
        return defect
    options, answer = sample.num_options, sample.answer
    sound = answer is None if not options else type(answer) is int and 0 <= answer < options
    if not sound:
        return NOT_A_CHOICE
    return next((MISSING.format(file.noun) for file in missing_files(sample)), None)


def places_defect(
    turns: Sequence[Turn], images: Sequence[Picture], sounds: Sequence[Sound]
) -> str | None:
    """Why a dialogue has not one place for each picture and for each sound, or None if it has."""
    places = [place for turn in turns for place in turn.places]
    for kind, place, files in ((Picture, Place.PICTURE, images), (Sound, Place.SOUND, sounds)):
        if places.count(place) != len(files):
            return OTHER_PLACES.format(kind.noun)
    return None


def missing_files(sample: Sample) -> list[MediaFile]:
    """The pictures and sounds whose files are not there."""
    files = chain.from_iterable(sample.media.values())
    return [file for file in files if file.path is not None and not is_there(file.path)]


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


def describe_skipped(skipped: Counter[str]) -> str:
    """The skip reasons in one line, most frequent first: "521 picture file is missing; …"."""
    ranked = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} {reason}" for reason, count in ranked) or "none"


def _texts_defect(raw: Mapping[str, Any], optional: Iterable[str]) -> str | None:
    given = (name for name in optional if not is_absent(raw.get(name)))
    defects = (text_defect(name, raw.get(name)) for name in ("question", *given))
    return next(filter(None, defects), None)


def _options_defect(
    raw: Mapping[str, Any], optional: Iterable[str], reason: str, unfit: Callable[[str], object]
) -> str | None:
    """Of a question with options; `reason` is given where one of them is unfit."""
    choices: Any = raw.get("choices")
    answer = raw.get("answer")
    if defect := _texts_defect(raw, optional):
        return defect
    if defect := choices_defect(choices):
        return defect
    if len(choices) > len(LETTERS):
        return f"more than {len(LETTERS)} choices"
    if any(map(unfit, choices)):
        return reason
    return None if type(answer) is int and 0 <= answer < len(choices) else NOT_A_CHOICE


def _is_picture_name(choice: str) -> bool:
    return _PICTURE_NAME.fullmatch(choice.strip()) is not None
