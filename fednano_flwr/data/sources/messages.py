"""Dialogues, as tools for tuning chat models take them.

    {"messages": [{"role": "user", "content": "<image>What is this?"},
                  {"role": "assistant", "content": "A cup."}], "images": ["photos/1.jpg"]}

A sound is `<audio>`, and its file in `audios`. A content may be a list of blocks, {"type": "text",
"text": …}, {"type": "image"} and {"type": "audio"}; sharegpt's `conversations` with `from` and
`value` are read, too. The answer is the last turn.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data import cells
from fednano_flwr.data.defects import DefectError, is_absent, places_defect
from fednano_flwr.data.row_reader import ALL, Cells, RowReader
from fednano_flwr.data.sample import Picture, Place, Sample, Sound, Turn
from fednano_flwr.data.sources import ANY_HUB_ID, Reader, Source
from fednano_flwr.data.split_files import LAYOUT, find_files

KINDS = (".jsonl", ".json", ".parquet")
"""Of files that can hold a list of turns."""
IMAGE, AUDIO = "<image>", "<audio>"
"""Stand for a picture and for a sound in a content that is a text."""
SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
COLUMNS = {
    "messages": ("messages", "conversations"),
    "image": ("images", "image"),
    "audio": ("audios", "audio"),
    "system": ("system",),
    "answers": ("answers",),
    "group": ("group",),
    "subject": ("subject",),
    "id": (),
}
NEEDED = {
    "messages": "Name it in dataset.columns, as messages=dialogue; rows with a column for the "
    'question and one for the answer are read by dataset.name = "table".'
}

NO_TURNS = "messages are not a list of turns"
NOT_A_TURN = "a turn is not an object with role and content"
UNKNOWN_ROLE = "a turn's role is none of system, user, human, assistant and gpt"
EMPTY_TURN = "a turn is empty"
NO_CONTENT = "a turn's content is neither a text nor a list of blocks"
UNKNOWN_BLOCK = "a block of a turn is neither a text nor an image nor a sound"
LATE_SYSTEM = "the system's turn is not the first"
NO_USER = "the dialogue does not begin with the user's turn"
SAME_ROLE = "two turns of one role follow one another"
NO_ANSWER = "the last turn is not the assistant's"
NOT_THE_USERS = "a {} stands in a turn that is not the user's"
GIVEN_TWICE = "{}s are given both in turns and in a column"
NO_REFERENCES = "answers are not texts"
KINDS_OF_FILES = {Place.PICTURE: Picture, Place.SOUND: Sound}
_PLACES = re.compile(f"({IMAGE}|{AUDIO})")
Inline = dict[Place, list[Any]]


def make_sample(row: Cells) -> Sample:
    """
    Raises:
        DefectError: the row is no dialogue that ends with an answer.
    """
    inline: Inline = {place: [] for place in Place}
    raw = row["messages"]
    if not isinstance(raw, list) or not raw:
        raise DefectError(NO_TURNS)
    turns = [_turn(one, inline) for one in raw]
    if (system := row["system"]) is not None and turns[0].role != "system":
        turns.insert(0, Turn("system", (_text(system),)))
    _check_order(turns)
    images, sounds = row.pictures(), row.sounds()
    for place, given in ((Place.PICTURE, images), (Place.SOUND, sounds)):
        if inline[place] and given:
            raise DefectError(GIVEN_TWICE.format(KINDS_OF_FILES[place].noun))
    images = images or cells.files(Picture, inline[Place.PICTURE], row.folder)
    sounds = sounds or cells.files(Sound, inline[Place.SOUND], row.folder)
    if not any(turn.places for turn in turns):  # as LLaVA's and others' tools do
        first = next(place for place, turn in enumerate(turns) if turn.role == "user")
        shown = [Place.PICTURE] * len(images) + [Place.SOUND] * len(sounds)
        turns[first] = replace(turns[first], parts=(*shown, *turns[first].parts))
    elif defect := places_defect(turns, images, sounds):
        raise DefectError(defect)
    answers = row.listed("answers")
    if not all(isinstance(answer, str) for answer in answers):
        raise DefectError(NO_REFERENCES)
    group = row.label("group", ALL)
    return Sample(
        uid=row.uid,
        question=turns[-2].text,
        group=group,
        subject=row.label("subject", group),
        free_answer=turns[-1].text,
        images=images,
        sounds=sounds,
        turns=tuple(turns[:-1]),
        references=cells.further(answers, turns[-1].text),
    )


def _turn(raw: Any, inline: Inline) -> Turn:
    """A turn; pictures and sounds that its blocks hold go to `inline`."""
    if not isinstance(raw, dict):
        raise DefectError(NOT_A_TURN)
    keys = ("role", "content") if "role" in raw else ("from", "value")
    speaker, content = (raw.get(key) for key in keys)
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DefectError(UNKNOWN_ROLE)
    parts: list[str | Place] = []
    if isinstance(content, str):
        places = {IMAGE: Place.PICTURE, AUDIO: Place.SOUND}
        parts = [places.get(part, part) for part in _PLACES.split(content) if part]
    elif isinstance(content, list):
        parts = [_part(block, inline) for block in content]
    elif content is not None:
        raise DefectError(NO_CONTENT)
    turn = Turn(role, tuple(parts))
    if not turn.places and is_absent(turn.text):
        raise DefectError(EMPTY_TURN)
    return turn


def _part(block: Any, inline: Inline) -> str | Place:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return _text(block.get("text"))
    place = next((place for place in Place if place.value == kind), None)
    if place is None:
        raise DefectError(UNKNOWN_BLOCK)
    # In a table, every block has all keys.
    found = [value for key in (place.value, "path") if (value := block.get(key)) is not None]
    inline[place] += found[:1]
    return place


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DefectError(NO_CONTENT)
    return value


def _check_order(turns: list[Turn]) -> None:
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        raise DefectError(LATE_SYSTEM)
    spoken = roles[roles[0] == "system" :]
    if any(one == other for one, other in pairwise(spoken)):
        raise DefectError(SAME_ROLE)
    if spoken[:1] != ["user"]:
        raise DefectError(NO_USER)
    if spoken[-1] != "assistant":
        raise DefectError(NO_ANSWER)
    for turn in turns:
        if turn.places and turn.role != "user":
            raise DefectError(NOT_THE_USERS.format(KINDS_OF_FILES[turn.places[0]].noun))


def _open(path: Path, dataset: Dataset) -> Reader | None:
    found = find_files(path, dataset.test_fraction > 0, KINDS)
    return RowReader(found, dataset, COLUMNS, NEEDED, make_sample) if found else None


SOURCE = Source(
    open=_open, layout=LAYOUT.format(", ".join(KINDS)), hub_id=ANY_HUB_ID, hub_splits=()
)
