"""dataset.name = "messages": dialogues in files of rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.data.defects import MISSING_PICTURE, OTHER_PLACES
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import check_dataset, load_questions
from fednano_flwr.data.sample import Picture, Place, Sample, Turn
from tests.data.conftest import png, settings

Write = Callable[..., Path]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


CUP = [user("<image>What is it?"), assistant("A cup.")]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows to a file; texts are lines as they are. Beside it are pictures a.png, b.png."""

    def write_rows(rows: list[Any], name: str = "data.jsonl") -> Path:
        (tmp_path / "pictures").mkdir(exist_ok=True)
        for shade, picture in enumerate("ab"):
            (tmp_path / "pictures" / f"{picture}.png").write_bytes(png(shade))
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        ends = ("[", ",\n", "]") if name.endswith(".json") else ("", "\n", "\n")
        file.write_text(ends[0] + ends[1].join(lines) + ends[2], encoding="utf-8")
        return file

    return write_rows


def load(path: Path, **changes: Any) -> tuple[list[Sample], dict[str, int]]:
    """The samples of a file without splits, and how many were left out for which reason."""
    own = {"name": "messages", "path": str(path), "test_fraction": 0.5, "max_skipped": 1.0}
    dataset = settings(**own | changes)
    check_dataset(dataset)
    found = load_questions(dataset)
    return list(found.train), dict(found.skipped)


GOOD: dict[str, Any] = {"messages": [user("Is it day?"), assistant("Yes.")]}


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_dialogue_is_read_with_every_turn_its_pictures_and_its_place(write, tmp_path, name):
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("<image>What is it?"),
            assistant("A cup."),
            user("And\n<image><image> these?"),
            assistant("Two more."),
        ],
        "images": ["pictures/a.png", "pictures/b.png", "pictures/a.png"],
        "answers": ["Cups.", "2"],
        "site": 7,
        "subject": "crockery",
    }
    a, b = (Picture(tmp_path / "pictures" / f"{name}.png") for name in "ab")
    samples, skipped = load(write([row, GOOD], name), group="site")
    assert not skipped
    assert samples[0] == Sample(
        uid=f"{name}:1",
        question="And\n these?",
        group="7",
        subject="crockery",
        free_answer="Two more.",
        images=(a, b, a),
        turns=(
            Turn("system", ("Be brief.",)),
            Turn("user", (Place.PICTURE, "What is it?")),
            Turn("assistant", ("A cup.",)),
            Turn("user", ("And\n", Place.PICTURE, Place.PICTURE, " these?")),
        ),
        references=("Cups.", "2"),
    )
    assert (samples[1].uid, samples[1].group) == (f"{name}:2", "no site")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CUP, "images": ["pictures/a.png"]},
        {"messages": CUP, "image": "pictures/a.png"},
        {"messages": CUP, "image": {"bytes": None, "path": "pictures/a.png"}},
        {
            "conversations": [
                {"from": "human", "value": "<image>What is it?"},
                {"from": "gpt", "value": "A cup."},
            ],
            "image": "pictures/a.png",
        },
        {
            "messages": [
                user([{"type": "image"}, {"type": "text", "text": "What is it?"}]),
                assistant([{"type": "text", "text": "A cup."}]),
            ],
            "images": ["pictures/a.png"],
        },
        {
            "messages": [
                user(
                    [
                        {"type": "image", "image": "pictures/a.png", "text": None},
                        {"type": "text", "text": "What is it?", "image": None},
                    ]
                ),
                assistant("A cup."),
            ]
        },
        {"messages": [user("What is it?"), assistant("A cup.")], "images": ["pictures/a.png"]},
    ],
    ids=["images", "image", "struct", "sharegpt", "blocks", "in blocks", "no placeholder"],
)
def test_every_way_to_write_a_dialogue_gives_the_same_sample(write, tmp_path, row):
    samples, _ = load(write([row]))
    assert samples == [
        Sample(
            uid="data.jsonl:1",
            question="What is it?",
            group="all",
            subject="all",
            free_answer="A cup.",
            images=(Picture(tmp_path / "pictures" / "a.png"),),
            turns=(Turn("user", (Place.PICTURE, "What is it?")),),
        )
    ]


def test_a_picture_may_be_named_from_the_root_if_it_lies_beside_the_file(write, tmp_path):
    place = tmp_path / "pictures" / "a.png"
    samples, _ = load(write([{"messages": CUP, "images": [str(place)]}]))
    assert samples[0].images == (Picture(place),)


def test_a_placeholder_in_a_block_s_text_stays_text_and_a_system_column_comes_first(write):
    typed = user([{"type": "text", "text": "What does <image> mean?"}, {"type": "image"}])
    rows = [
        {"messages": [typed, assistant("A picture.")], "images": ["pictures/a.png"]},
        {**GOOD, "system": "Be brief."},
        {"messages": [user("<image>"), assistant("A cup.")], "images": ["pictures/b.png"]},
    ]
    samples, skipped = load(write(rows))
    assert samples[0].turns == (Turn("user", ("What does <image> mean?", Place.PICTURE)),)
    assert [turn.role for turn in samples[1].turns] == ["system", "user"]
    assert samples[2].turns == (Turn("user", (Place.PICTURE,)),) and not skipped


@pytest.mark.parametrize(
    ("named", "column"), [({"columns": "messages=talk,id=key"}, "talk"), ({}, "messages")]
)
def test_columns_are_found_by_their_names_or_as_the_user_names_them(write, capsys, named, column):
    rows = [{column: GOOD["messages"], "key": key} for key in ("x", None)]
    samples, _ = load(write(rows), **named)
    uids = ["x", "data.jsonl:2"] if named else ["data.jsonl:1", "data.jsonl:2"]
    assert [sample.uid for sample in samples] == uids
    assert f"messages={column}" in capsys.readouterr().err


def test_a_picture_that_is_put_in_its_place_is_found_the_next_time(write, tmp_path):
    file = write([GOOD, {"messages": CUP, "images": ["pictures/late.png"]}])
    assert load(file)[1] == {MISSING_PICTURE: 1}
    (tmp_path / "pictures" / "late.png").write_bytes(png())
    samples, skipped = load(file)
    assert len(samples) == 2 and not skipped


def test_a_picture_that_no_turn_has_a_place_for_leaves_its_row_out(write):
    pictures = {"images": ["pictures/a.png", "pictures/b.png"]}
    assert load(write([GOOD, {"messages": CUP, **pictures}]))[1] == {
        OTHER_PLACES.format("picture"): 1
    }


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_splits_are_files_or_folders_called_after_them(write, suffix):
    for places in (
        {"train": f"train.{suffix}", "test": f"test.{suffix}"},
        {"train": f"data/train-0-of-1.{suffix}", "test": f"data/test-0-of-1.{suffix}"},
        {"train": f"train/metadata.{suffix}", "test": f"test/rows.{suffix}"},
    ):
        folder = write([GOOD]).parent / places["train"].split("/")[0].replace(".", "-")
        for name in places.values():
            write([GOOD], f"{folder.name}/{name}")
        found = load_questions(settings(name="messages", path=str(folder)))
        assert [*found.train.uids, *found.test.uids] == [f"{name}:1" for name in places.values()]


@pytest.mark.parametrize(
    ("files", "changes", "says"),
    [
        (["data.jsonl"], {}, r"test-fraction \(0\.2, say\)"),
        (["sub/data.jsonl"], {"path": "sub"}, r"test-fraction \(0\.2, say\)"),
        (["train.jsonl"], {"path": ""}, "no split 'test'.* called after train"),
        (["test.jsonl"], {"path": "", "test_fraction": 0.5}, "no split 'train'"),
        (["train.jsonl", "train.json", "test.jsonl"], {"path": ""}, "several kinds"),
        (["train.jsonl", "train-old.jsonl", "test.jsonl"], {"path": ""}, "train-old.jsonl"),
        (["train-0-of-2.jsonl", "test.jsonl"], {"path": ""}, "missing: 1"),
        (["data.jsonl"], {"test_fraction": 0.5, "columns": "talk=x"}, "may name: messages, image"),
        (["data.jsonl"], {"test_fraction": 0.5, "columns": "image=photo"}, "no column 'photo'"),
        (["data.jsonl"], {"test_fraction": 0.5, "group": "site"}, r"dataset\.group names; its"),
        (["data.jsonl"], {"test_fraction": 0.5, "group": "a", "columns": "group=b"}, "group=b"),
        (["data.xlsx"], {}, r"is a file, and no messages"),
        (["data.jsonl"], {"name": "scienceqa"}, r"looks like dataset\.name = messages or table"),
    ],
)
def test_what_cannot_be_read_as_asked_is_refused_before_it_is_read(
    write, tmp_path, files, changes, says
):
    for file in files:
        write([GOOD], file)
    own = {"name": "messages", "path": str(tmp_path / changes.pop("path", files[0]))}
    with pytest.raises(DataError, match=says):
        check_dataset(settings(**own | changes))
