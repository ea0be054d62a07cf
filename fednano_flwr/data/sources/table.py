"""Questions and answers in columns, or pictures in folders that are called after their labels.

An answer is free text, or one of the options in a column of choices, or a class. Where there is no
column for the question, `dataset.instruction` is the question of every row: captions need no other.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data import cells
from fednano_flwr.data.defects import NOT_A_CHOICE, DefectError, choices_defect, is_absent
from fednano_flwr.data.prompts import FREE_INSTRUCTION
from fednano_flwr.data.row_reader import ALL, Cells, RowReader
from fednano_flwr.data.rows import SUFFIXES
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources import ANY_HUB_ID, Reader, Source
from fednano_flwr.data.sources.messages import AUDIO, IMAGE
from fednano_flwr.data.split_files import LAYOUT, find_files

COLUMNS = {
    "image": ("image", "images", "picture", "pictures", "photo", "photos", "img", "file_name"),
    "audio": ("audio", "audios", "sound", "sounds"),
    "answer": (
        *("answer", "multiple_choice_answer", "label", "caption", "target"),
        *("response", "output", "answers", "labels", "captions", "text"),
    ),
    "question": ("question", "prompt", "query", "instruction", "input", "text"),
    "choices": ("choices", "options"),
    "answers": ("answers",),
    "context": ("context", "hint", "input"),
    "group": ("group",),
    "subject": ("subject",),
    "id": (),
}
"""`text` is an answer where no other column is, as in captions, and else a question."""
NEEDED = {
    "answer": "Name it in dataset.columns, as answer=label; rows with a list of turns are read by "
    'dataset.name = "messages".'
}
NO_QUESTION = {
    "question": "Name it in dataset.columns, as question=text; or set dataset.instruction to what "
    "is asked in every row, such as 'Describe the picture.'"
}
NOT_TEXT = "answer is not text"
NOTHING_ASKED = "neither a question nor a picture nor a sound"
_PLACES = re.compile(rf"(?:(?:{IMAGE}|{AUDIO})\s*)+")
_LETTER = re.compile(r"\(?([A-Z])[).:]?", re.IGNORECASE)


def make_sample(row: Cells, instruction: str) -> Sample:
    """
    Raises:
        DefectError: the row has no answer, or one that is not among its choices.
    """
    choices = _choices(row)
    group = row.label("group", row.label("answer", ALL) if row.classes_of("answer") else ALL)
    asked, images, sounds = "question" in row.columns, row.pictures(), row.sounds()
    if not asked and not images and not sounds:
        raise DefectError(NOTHING_ASKED)
    answer = None if not choices else option(row["answer"], choices)
    free, references = ("", ()) if choices else _free_answer(row)
    return Sample(
        uid=row.uid,
        question=without_places(row["question"], len(images), len(sounds))
        if asked
        else instruction,
        group=group,
        subject=row.label("subject", group),
        choices=choices,
        answer=answer,
        free_answer=free,
        images=images,
        sounds=sounds,
        context="" if row["context"] is None else row["context"],
        references=references,
        instruction=instruction if asked else "",
    )


def without_places(question: Any, pictures: int, sounds: int = 0) -> Any:
    """A question without one `<image>` for each picture, and one `<audio>` for each sound, at its
    beginning: there they stand anyhow.

    Any other is what the user typed.
    """
    found = _PLACES.match(question) if isinstance(question, str) else None
    if found and (found[0].count(IMAGE), found[0].count(AUDIO)) == (pictures, sounds):
        return question[found.end() :]
    return question


def option(value: Any, choices: tuple[str, ...]) -> int:
    """Index of the option that an answer names.

    A number is an index, from 0. A text is an option's text; else its letter, as "B" or "(b)"; else
    its index: of the options 2, 1 and 0, the answer "2" is the first, and the answer 2 the last.

    Raises:
        DefectError: it names none of them.
    """
    index = cells.number(value)
    if index is None and isinstance(value, str):
        if value in choices:
            return choices.index(value)
        text = value.strip()
        texts = [choice.strip() for choice in choices]
        if text in texts:
            return texts.index(text)
        if letter := _LETTER.fullmatch(text):
            index = ord(letter[1].upper()) - ord("A")
        elif text.isdecimal():
            index = int(text) if len(text) < 9 else None
    if index is None or not 0 <= index < len(choices):
        raise DefectError(NOT_A_CHOICE)
    return index


def _choices(row: Cells) -> tuple[str, ...]:
    """The options of a row; () of a free answer."""
    choices: Any = list(row.classes_of("answer"))
    if row["choices"] is not None:
        choices = cells.parsed(row["choices"]) if row.text_only else row["choices"]
    elif not choices:
        return ()
    if defect := choices_defect(choices):
        raise DefectError(defect)
    return tuple(choices)


def _free_answer(row: Cells) -> tuple[str, tuple[str, ...]]:
    """The answer that is given most often, the first of several, and the others."""
    given = _texts(row.listed("answer"))
    if not given:
        raise DefectError("answer has no text")
    ((answer, _),) = Counter(given).most_common(1)
    return answer, cells.further(_texts(row.listed("answers")) or given, answer)


def _texts(values: list[Any]) -> list[str]:
    """Answers as texts, without the empty ones; VQA's are objects with an `answer`."""
    found = []
    for value in values:
        said = value.get("answer") if isinstance(value, dict) else value
        if (whole := cells.number(said)) is not None:
            said = str(whole)
        if is_absent(said):
            continue
        if not isinstance(said, str):
            raise DefectError(NOT_TEXT)
        found.append(said)
    return found


def _open(path: Path, dataset: Dataset) -> Reader | None:
    found = find_files(path, dataset.test_fraction > 0, labels=True)
    if found is None:
        return None
    own = dataset.instruction not in ("", FREE_INSTRUCTION)
    needed = NEEDED if own else NEEDED | NO_QUESTION
    make = partial(make_sample, instruction=dataset.instruction)
    return RowReader(found, dataset, COLUMNS, needed, make)


SOURCE = Source(
    open=_open,
    layout=f"{LAYOUT.format(', '.join(SUFFIXES))}\n  <dataset.path>/<split>/<label>/<picture>",
    hub_id=ANY_HUB_ID,
    hub_splits=(),
)
