"""Dialogues, as tools for tuning chat models take them.

    {"messages": [{"role": "user", "content": "<image>What is this?"},
                  {"role": "assistant", "content": "A cup."}], "images": ["photos/1.jpg"]}

A content may be a list of blocks, {"type": "image"} and {"type": "text", "text": …}; sharegpt's
`conversations` with `from` and `value` are read, too. The answer is the last turn.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data import cells
from fednano_flwr.data.defects import OTHER_PLACES, DefectError, is_absent
from fednano_flwr.data.row_reader import ALL, Cells, RowReader
from fednano_flwr.data.sample import Sample, Turn
from fednano_flwr.data.sources import ANY_HUB_ID, Reader, Source
from fednano_flwr.data.split_files import LAYOUT, find_files

KINDS = (".jsonl", ".json", ".parquet")
"""Of files that can hold a list of turns."""
IMAGE = "<image>"
"""Stands for a picture in a content that is a text."""
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
UNKNOWN_BLOCK = "a block of a turn is neither a text nor an image"
LATE_SYSTEM = "the system's turn is not the first"
NO_USER = "the dialogue does not begin with the user's turn"
SAME_ROLE = "two turns of one role follow one another"
NO_ANSWER = "the last turn is not the assistant's"
NOT_THE_USERS = "a picture stands in a turn that is not the user's"
GIVEN_TWICE = "pictures are given both in turns and in a column"
NO_REFERENCES = "answers are not texts"


def make_sample(row: Cells) -> Sample:
    """
    Raises:
        DefectError: the row is no dialogue that ends with an answer.
    """
    inline: list[Any] = []
    raw = row["messages"]
    if not isinstance(raw, list) or not raw:
        raise DefectError(NO_TURNS)
    turns = [_turn(one, inline) for one in raw]
    if (system := row["system"]) is not None and turns[0].role != "system":
        turns.insert(0, Turn("system", (_text(system),)))
    _check_order(turns)
    images = row.pictures("image")
    if inline and images:
        raise DefectError(GIVEN_TWICE)
    images = images or cells.pictures(inline, row.folder)
    places = sum(turn.parts.count(None) for turn in turns)
    if images and not places:  # as LLaVA's and others' tools do
        first = next(place for place, turn in enumerate(turns) if turn.role == "user")
        parts = (*[None] * len(images), *turns[first].parts)
        turns[first] = replace(turns[first], parts=parts)
    elif places != len(images):
        raise DefectError(OTHER_PLACES)
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
        turns=tuple(turns[:-1]),
        references=cells.further(answers, turns[-1].text),
    )


def _turn(raw: Any, inline: list[Any]) -> Turn:
    """A turn; pictures that its blocks hold go to `inline`."""
    if not isinstance(raw, dict):
        raise DefectError(NOT_A_TURN)
    keys = ("role", "content") if "role" in raw else ("from", "value")
    speaker, content = (raw.get(key) for key in keys)
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DefectError(UNKNOWN_ROLE)
    parts: list[str | None] = []
    if isinstance(content, str):
        for number, text in enumerate(content.split(IMAGE)):
            parts += [None] if number else []
            parts += [text] if text else []
    elif isinstance(content, list):
        parts = [_part(block, inline) for block in content]
    elif content is not None:
        raise DefectError(NO_CONTENT)
    turn = Turn(role, tuple(parts))
    if None not in turn.parts and is_absent(turn.text):
        raise DefectError(EMPTY_TURN)
    return turn


def _part(block: Any, inline: list[Any]) -> str | None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return _text(block.get("text"))
    if kind != "image":
        raise DefectError(UNKNOWN_BLOCK)
    # In a table, every block has all keys.
    inline += [value for key in ("image", "path") if (value := block.get(key)) is not None][:1]
    return None


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
    if any(None in turn.parts for turn in turns if turn.role != "user"):
        raise DefectError(NOT_THE_USERS)


def _open(path: Path, dataset: Dataset) -> Reader | None:
    found = find_files(path, dataset.test_fraction > 0, KINDS)
    return RowReader(found, dataset, COLUMNS, NEEDED, make_sample) if found else None


SOURCE = Source(
    open=_open, layout=LAYOUT.format(", ".join(KINDS)), hub_id=ANY_HUB_ID, hub_splits=()
)
