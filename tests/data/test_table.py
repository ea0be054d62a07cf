"""dataset.name = "table": questions and answers in columns, and pictures in folders by label."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from fednano_flwr.data.defects import MISSING_PICTURE, NOT_A_CHOICE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import check_dataset, load_questions
from fednano_flwr.data.rows import ROWS_LOOKED_AT
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources.table import option
from tests.data.conftest import png, settings

Write = Callable[..., Path]
USUAL = "Answer the question using a single word or phrase."


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows to a file of a kind that its name says; a.png and b.png lie beside it."""

    def write_rows(rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for shade, picture in enumerate("ab"):
            (file.parent / f"{picture}.png").write_bytes(png(shade))
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        elif name.endswith(("csv", "tsv")):
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), delimiter="," if "csv" in name else "\t")
            writer.writeheader()
            writer.writerows(rows)
            file.write_text(text.getvalue(), encoding="utf-8")
        else:
            lines = map(json.dumps, rows)
            text = f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines)
            file.write_text(text, encoding="utf-8")
        return file

    return write_rows


def load(path: Path, **changes: Any) -> tuple[list[Sample], dict[str, int]]:
    """The samples of a file without splits, and how many were left out for which reason."""
    own = {"name": "table", "path": str(path), "test_fraction": 0.5, "max_skipped": 1.0}
    dataset = settings(**own | changes)
    check_dataset(dataset)
    found = load_questions(dataset)
    return list(found.train), dict(found.skipped)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_samples(write, tmp_path, kind):
    rows = [
        {
            "image": "a.png",
            "question": 'Which, "this" or\nthat?',
            "choices": ["this", "that"],
            "answer": "that",
            "hint": "Look.",
            "group": "home",
        },
        {
            "image": None,
            "question": "How many?",
            "choices": None,
            "answer": "seven",
            "hint": None,
            "group": None,
        },
    ]
    samples, skipped = load(write(rows, f"data.{kind}"))
    places = {"csv": (2, 4), "tsv": (2, 4)}.get(kind, (1, 2))  # lines, the first the header
    assert not skipped and samples == [
        Sample(
            uid=f"data.{kind}:{places[0]}",
            question='Which, "this" or\nthat?',
            group="home",
            subject="home",
            choices=("this", "that"),
            answer=1,
            images=(Picture(tmp_path / "a.png"),),
            context="Look.",
            instruction=USUAL,
        ),
        Sample(
            uid=f"data.{kind}:{places[1]}",
            question="How many?",
            group="no group",
            subject="no group",
            free_answer="seven",
            instruction=USUAL,
        ),
    ]


def test_columns_are_those_the_user_names_and_are_said(write, capsys):
    row = {"photo": "a.png", "text": "Which?", "label": "B", "options": ["x", "y"], "site": 3}
    row |= {"hint": "Look.", "key": 12, "kind": "shape", "image": "no.png", "answer": "x"}
    columns = (
        "image=photo, question=text,answer=label,choices=options,group=site,id=key,subject=kind"
    )
    (sample,), _ = load(write([row]), columns=columns)
    assert (sample.uid, sample.question, sample.answer) == ("12", "Which?", 1)
    assert (sample.group, sample.subject, sample.context) == ("3", "shape", "Look.")
    assert "image=photo, answer=label, question=text" in capsys.readouterr().err
    assert load_questions(
        settings(name="table", path=str(write([row])), test_fraction=0.5, columns=columns)
    ).columns == {
        "train": "image=photo, answer=label, question=text, choices=options, context=hint, "
        "group=site, subject=kind, id=key"
    }


@pytest.mark.parametrize(
    ("columns", "question", "answer"),
    [
        ({"Question ": "q", " ANSWER": "a"}, "q", "a"),
        ({"text": "q", "label": "a"}, "q", "a"),
        ({"query": "q", "target": "a", "text": "passage"}, "q", "a"),
        ({"prompt": "q", "text": "a"}, "q", "a"),
        ({"question": "q", "answers": ["b", "a", "a"], "text": "passage"}, "q", "a"),
        ({"query": "q", "response": "a"}, "q", "a"),
        ({"instruction": "q", "input": "", "output": "a"}, "q", "a"),
        ({"input": "q", "output": "a"}, "q", "a"),
    ],
)
def test_columns_are_found_by_their_usual_names(write, columns, question, answer):
    (sample,), _ = load(write([columns]))
    assert (sample.question, sample.free_answer) == (question, answer)


def test_a_place_for_each_picture_at_the_beginning_of_a_question_is_no_text_of_it(write):
    def question(text, *images):
        row = {"query": text, "response": "a", "images": list(images)}
        return load(write([row]))[0][0].question

    assert question("<image>\n<image> What?", "a.png", "b.png") == "What?"
    assert question("<image>What?") == "<image>What?"
    assert question("<image>What?", "a.png", "b.png") == "<image>What?"
    assert question("What is <image>?", "a.png") == "What is <image>?"


def test_captions_need_no_question_but_an_instruction_of_their_own(write):
    rows = [{"file_name": "a.png", "text": "A red square."}, {"file_name": "", "text": "x"}]
    file = write(rows, "metadata.csv")
    (sample,), skipped = load(file, instruction="Describe the picture.")
    assert (sample.question, sample.instruction) == ("Describe the picture.", "")
    assert (sample.free_answer, len(sample.images)) == ("A red square.", 1)
    assert skipped == {"neither a question nor a picture nor a sound": 1}
    for instruction in ("", USUAL):
        with pytest.raises(DataError, match="no column for question; its columns are file_name"):
            load(file, instruction=instruction)


def test_a_free_question_is_followed_by_the_instruction_or_by_none(write):
    file = write([{"question": "q", "answer": "a"}])
    for instruction in ("Be brief.", ""):
        assert load(file, instruction=instruction)[0][0].instruction == instruction


@pytest.mark.parametrize(
    ("choices", "value", "index"),
    [
        (("red", "blue"), 1, 1),
        (("red", "blue"), 1.0, 1),
        (("red", "blue"), "blue", 1),
        (("red", " blue "), "blue\n", 1),
        (("red", "blue"), "B", 1),
        (("red", "blue"), "(b)", 1),
        (("red", "blue"), "b.", 1),
        (("red", "blue"), "1", 1),
        (("2", "1", "0"), 2, 2),
        (("2", "1", "0"), "2", 0),
        (("C", "B", "A"), "A", 2),
        (("same", "same"), "same", 0),
        (("dog ", "dog"), "dog", 1),
    ],
)
def test_an_answer_is_an_option_s_index_its_text_or_its_letter(choices, value, index):
    assert option(value, choices) == index


@pytest.mark.parametrize("value", [2, -1, 0.5, "C", "green", "2", "-1", True, None, [0], "9" * 99])
def test_an_answer_that_is_no_option_leaves_its_row_out(write, value):
    row = {"question": "q", "choices": ["red", "blue"], "answer": value}
    assert load(write([row, {**row, "answer": 0}]))[1] == {NOT_A_CHOICE: 1}


def test_of_several_answers_the_most_frequent_is_learned_and_all_others_are_kept(write):
    votes = ["no", "yes", "yes", "maybe", "", "yes"]
    rows = [
        {"question": "q", "answers": votes},
        {
            "question": "q",
            "multiple_choice_answer": "yes",
            "answers": [{"answer": v} for v in votes],
        },
        {"question": "q", "answer": 7},
    ]
    for row in rows[:2]:
        (sample,), _ = load(write([row]))
        assert sample.free_answer == "yes"
        assert sorted(sample.references) == ["maybe", "no", "yes", "yes"]
    (sample,), _ = load(write(rows[2:]))
    assert (sample.free_answer, sample.references) == ("7", ())


def test_a_list_in_a_cell_of_csv_is_read_as_python_and_json_write_it(write):
    row = {
        "question": "q",
        "images": "['a.png', \"b.png\"]",
        "choices": '["x", "y"]',
        "answer": "y",
    }
    free = {**row, "images": "", "choices": "", "answer": "[1, 2]"}
    (first, second), _ = load(write([row, free], "data.csv"))
    assert (first.choices, first.answer, len(first.images)) == (("x", "y"), 1, 2)
    assert (second.choices, second.free_answer, second.images) == ((), "[1, 2]", ())
    # in other files, a list is a list and a text a text
    (third,), _ = load(write([{"question": "q", "answer": '["x"]'}]))
    assert third.free_answer == '["x"]'


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Pictures in folders by label; the test split lacks one, and has a file that is no picture."""
    for place in ("train/rose/1.png", "train/iris/2.JPG", "train/aster/3.png", "test/rose/4.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png())
    (tmp_path / "test" / "rose" / "notes.txt").touch()
    (tmp_path / "train" / "rose" / ".hidden").touch()
    return tmp_path


def test_pictures_in_folders_have_the_folders_of_all_splits_as_options(flowers):
    asked = {"instruction": "Which flower?", "max_skipped": 1.0}
    found = load_questions(settings(name="table", path=str(flowers), **asked))
    assert [(s.uid, s.group, s.answer) for s in (*found.train, *found.test)] == [
        ("train/aster/3.png", "aster", 0),
        ("train/iris/2.JPG", "iris", 1),
        ("train/rose/1.png", "rose", 2),
        ("test/rose/4.png", "rose", 2),
    ]
    assert {s.choices for s in (*found.train, *found.test)} == {("aster", "iris", "rose")}
    assert found.test[0].images == (Picture(flowers / "test" / "rose" / "4.png"),)
    assert found.skipped == {"file in a label's folder is no picture by its name": 1}
    samples, _ = load(flowers / "train", **asked)
    assert [s.uid for s in samples] == ["aster/3.png", "iris/2.JPG", "rose/1.png"]
    with pytest.raises(DataError, match=r"test-fraction \(0\.2, say\)"):
        check_dataset(settings(name="table", path=str(flowers / "train"), **asked))


def test_a_label_that_comes_later_is_an_option_of_pictures_read_before(flowers):
    own = settings(name="table", path=str(flowers), instruction="Which?", max_skipped=1.0)
    assert "lily" not in load_questions(own).train[0].choices
    (flowers / "test" / "lily").mkdir()
    (flowers / "test" / "lily" / "5.png").write_bytes(png())
    found = load_questions(own)
    assert found.train[0].choices == found.test[0].choices == ("aster", "iris", "lily", "rose")


def test_pictures_of_one_label_alone_leave_nothing_to_choose(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "rose").mkdir(parents=True)
        (tmp_path / split / "rose" / "1.png").write_bytes(png())
    with pytest.raises(DataError, match="fewer than two choices"):
        load_questions(settings(name="table", path=str(tmp_path), instruction="Which?"))


def test_a_row_with_a_column_that_the_first_rows_lack_is_left_out(write):
    rows = [{"question": "q", "answer": "a"}] * ROWS_LOOKED_AT
    late = [{"Choices": ["a", "b"], "answer": 1}, {"choices": None}, {"note": "no column read"}]
    samples, skipped = load(write([*rows, *({**rows[0], **row} for row in late)]))
    assert len(samples) + 1 == len(rows) + len(late) and len(skipped) == 1
    assert "'Choices'" in next(iter(skipped))


def test_what_datasets_writes_is_read_with_its_pictures_and_the_names_of_its_classes(tmp_path):
    features = Features(
        {
            "img": Image(),
            "label": ClassLabel(names=["cat", "dog"]),
            "site": ClassLabel(names=["x", "y"]),
        }
    )
    rows = {"img": [{"bytes": png(), "path": None}] * 3, "label": [1, 0, -1], "site": [0, 1, 0]}
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        file = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        Dataset.from_dict(rows, features=features).to_parquet(file)
    own = {"instruction": "Which animal?", "group": "site", "max_skipped": 1.0}
    found = load_questions(settings(name="table", path=str(tmp_path), **own))
    assert [(s.choices, s.answer, s.group) for s in found.train] == [
        (("cat", "dog"), 1, "x"),
        (("cat", "dog"), 0, "y"),
    ]
    assert [picture.read() for picture in found.train[0].images] == [png()]
    assert found.skipped == {NOT_A_CHOICE: 2}
    (by_label, _) = load_questions(
        settings(name="table", path=str(tmp_path), **own | {"group": ""})
    ).train
    assert by_label.group == "dog"


def test_a_metadata_file_in_a_split_s_folder_names_its_pictures(write):
    rows = [{"file_name": "a.png", "caption": "A"}, {"file_name": "lost.png", "caption": "B"}]
    for split in ("train", "test"):
        folder = write(rows, f"{split}/metadata.csv").parent.parent
    own = {"instruction": "Describe it.", "max_skipped": 0.5}
    found = load_questions(settings(name="table", path=str(folder), **own))
    assert found.train.uids == ["train/metadata.csv:2"] and found.skipped == {MISSING_PICTURE: 2}
    assert found.train[0].images == (Picture(folder / "train" / "a.png"),)
