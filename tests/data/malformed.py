"""Malformed inputs of `messages` and `table` and what is said to each, as in docs/own-data.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Malformed:
    """
    Attributes:
        what: the input, in words.
        said: why the row is left out, or a part of the refusal.
        name: of its file.
        text: the file's content: a good row, and then the malformed one.
        rows: its number in the file where it alone is left out; "" where the file is refused.
        settings: beside name and path.
    """

    source: str
    what: str
    said: str
    text: str | bytes
    name: str = "data.jsonl"
    row: str = "2"
    settings: dict[str, Any] = field(default_factory=dict)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


ASKED, SAID = user("Is it day?"), assistant("Yes.")
TALK = json.dumps({"messages": [ASKED, SAID]})
SEEN, HEARD = ([user(f"<{kind}>Is it day?"), SAID] for kind in ("image", "audio"))
QUESTION: dict[str, Any] = {"question": "Is it?", "choices": ["yes", "no"], "answer": "yes"}


def talk(what: str, said: str, messages: Any, **more: Any) -> Malformed:
    row = json.dumps({"messages": messages, **more})
    return Malformed("messages", what, said, f"{TALK}\n{row}\n")


def line(what: str, said: str, row: str) -> Malformed:
    return Malformed("messages", what, said, f"{TALK}\n{row}\n")


def asked(what: str, said: str, **changes: Any) -> Malformed:
    rows = (QUESTION, QUESTION | changes)
    return Malformed("table", what, said, "\n".join(map(json.dumps, rows)))


def refused(
    what: str, said: str, name: str, text: str | bytes, source: str = "table", **settings: Any
) -> Malformed:
    return Malformed(source, what, said, text, name, "", settings)


CASES: Sequence[Malformed] = (
    line("a line that is cut off", "row is not valid JSON", '{"messages": [{"role": "us'),
    line("a line that is a list", "row is not a JSON object", "[1, 2]"),
    line("a row without `messages`", "messages are not a list of turns", '{"text": "Hi"}'),
    line(
        "a row that has `messages` twice",
        "messages are not a list of turns",
        '{"messages": [], "messages": [1]}',
    ),
    talk(
        "a turn that is a text", "a turn is not an object with role and content", ["Is it?", "Yes."]
    ),
    talk(
        "a turn of the role `tool`",
        "a turn's role is none of system, user, human, assistant and gpt",
        [ASKED, {"role": "tool", "content": "1"}, SAID],
    ),
    talk("an empty turn", "a turn is empty", [ASKED, assistant(" ")]),
    talk(
        "a content that is a number",
        "a turn's content is neither a text nor a list of blocks",
        [ASKED, assistant(4)],
    ),
    talk(
        "a block of the type `video`",
        "a block of a turn is neither a text nor an image nor a sound",
        [user([{"type": "video"}]), SAID],
    ),
    talk(
        "a system prompt in the middle",
        "the system's turn is not the first",
        [ASKED, {"role": "system", "content": "Be brief."}, SAID],
    ),
    talk(
        "a dialogue that the assistant begins",
        "the dialogue does not begin with the user's turn",
        [SAID, ASKED, SAID],
    ),
    talk("two turns of the user", "two turns of one role follow one another", [ASKED, ASKED, SAID]),
    talk(
        "a dialogue that the user ends",
        "the last turn is not the assistant's",
        [ASKED, SAID, ASKED],
    ),
    talk(
        "`<image>` in an answer",
        "a picture stands in a turn that is not the user's",
        [ASKED, assistant("<image>")],
        images=["a.png"],
    ),
    talk(
        "two pictures and one `<image>`",
        "it has another number of pictures than of places for them",
        SEEN,
        images=["a.png", "a.png"],
    ),
    talk(
        "`<image>` and no picture",
        "it has another number of pictures than of places for them",
        SEEN,
    ),
    talk(
        "pictures in blocks and in `images`",
        "pictures are given both in turns and in a column",
        [user([{"type": "image", "image": "a.png"}]), SAID],
        images=["a.png"],
    ),
    talk("a picture that is not there", "picture file is missing", SEEN, images=["lost.png"]),
    talk(
        "a picture above the file's folder",
        "picture's path leads out of its file's folder",
        SEEN,
        images=["../a.png"],
    ),
    talk(
        "a picture elsewhere on the disk",
        "picture's path leads out of its file's folder",
        SEEN,
        images=["/etc/a.png"],
    ),
    talk(
        "a picture on the web",
        "picture is given by an address, and only files are read",
        SEEN,
        images=["https://example.org/a.png"],
    ),
    talk(
        "a picture that is a number",
        "picture is neither a path nor a file's bytes",
        SEEN,
        images=[7],
    ),
    talk("a sound that is not there", "sound file is missing", HEARD, audios=["lost.wav"]),
    talk(
        "`<audio>` in an answer",
        "a sound stands in a turn that is not the user's",
        [ASKED, assistant("<audio>")],
        audios=["a.wav"],
    ),
    talk(
        "`<audio>` and no sound",
        "it has another number of sounds than of places for them",
        HEARD,
    ),
    talk(
        "sounds in blocks and in `audios`",
        "sounds are given both in turns and in a column",
        [user([{"type": "audio", "audio": "a.wav"}]), SAID],
        audios=["a.wav"],
    ),
    talk(
        "a sound on the web",
        "sound is given by an address, and only files are read",
        HEARD,
        audios=["https://example.org/a.wav"],
    ),
    talk("a NUL in a text", "question has a character that is none", [user("Is\0it?"), SAID]),
    asked("an answer that is no choice", "answer is not one of the choices", answer="maybe"),
    asked("an index past the choices", "answer is not one of the choices", answer=2),
    asked("one choice", "fewer than two choices", choices=["yes"]),
    asked("choices in one text", "choices are not a list", choices="yes, no"),
    asked("a choice that is a number", "a choice is not text", choices=["yes", 0]),
    asked("no answer", "answer has no text", choices=None, answer=None),
    asked("an answer that is true", "answer is not text", choices=None, answer=True),
    asked("no question", "question has no text", question=""),
    asked("a group that is a list", "group is not text", group=["a"]),
    Malformed(
        "table",
        "a row of CSV with a cell too many",
        "row has another number of cells than the header",
        "question,answer\nIs it?,yes\nIs it, then?,yes\n",
        "data.csv",
        "3",
    ),
    Malformed(
        "table",
        "a row of CSV that is not UTF-8",
        "question has a character that is none",
        b"question,answer\nIs it?,yes\nIst er gr\xfcn?,yes\n",
        "data.csv",
        "3",
    ),
    refused(
        "a JSON list that is broken",
        "is not valid JSON from its row 2 on",
        "data.json",
        '[{"question": "Is it?", "answer": "yes"}, {"question": "Is',
    ),
    refused(
        "CSV with a quotation mark that is not closed",
        "is not CSV from line 3 on",
        "data.csv",
        'question,answer\nIs it?,yes\n"Is it?,no\nIs it?,no\n',
    ),
    refused(
        "CSV that names a column twice",
        "its first line must name the columns, each once",
        "data.csv",
        "question,question,answer\nIs it?,Is it?,yes\n",
    ),
    refused(
        "a parquet file that Git LFS has not fetched",
        "cannot be read as parquet",
        "data.parquet",
        "version https://git-lfs.github.com/spec/v1\n",
    ),
    refused("an empty file", "has no column for messages", "data.jsonl", "", "messages"),
    refused("no column for the answer", "has no column for answer", "data.csv", "question\nIs it?"),
    refused("no column for the question", "has no column for question", "data.csv", "answer\nyes"),
    refused(
        "a column that is not there",
        "has no column 'site', which dataset.group names",
        "data.csv",
        "question,answer\nIs it?,yes\n",
        group="site",
    ),
    refused(
        "an id that two rows have",
        "have the id '1'",
        "data.csv",
        "question,answer,key\nIs it?,yes,1\nIs it not?,no,1\n",
        columns="id=key",
    ),
    refused(
        "one file, and no `dataset.test-fraction`",
        "has no splits",
        "data.csv",
        "question,answer\nIs it?,yes\n",
        test_fraction=0.0,
    ),
)
