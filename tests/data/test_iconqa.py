import json
from collections import Counter
from pathlib import Path

import pytest

from fednano_flwr.data import iconqa
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.iconqa import load_iconqa
from fednano_flwr.data.reading import MISSING_PICTURE


def test_a_question_is_read_with_every_field(tmp_path, write_iconqa):
    folder = write_iconqa("train", "7", question="Odd or even?", choices=["odd", "even"], answer=0)
    (sample,) = load_iconqa(tmp_path).train
    assert (sample.uid, sample.question, sample.answer) == ("7", "Odd or even?", 0)
    assert sample.choices == ("odd", "even")
    assert sample.group == "grade2 choose_txt"
    assert sample.context == ""
    assert sample.image == folder / "image.png"


def test_train_and_test_are_read_and_val_is_not(tmp_path, write_iconqa):
    for split, pid in (("train", "1"), ("val", "2"), ("test", "3")):
        write_iconqa(split, pid)
        write_iconqa(split, f"{pid}0", task="choose_img")
    questions = load_iconqa(tmp_path)
    assert [sample.uid for sample in questions.train] == ["1"]
    assert [sample.uid for sample in questions.test] == ["3"]
    assert questions.skipped == {iconqa.UNREAD_TASKS["choose_img"]: 2}


def test_order_is_numeric_whatever_order_the_disk_has(tmp_path, write_iconqa):
    for pid in ("100", "9", "11", "2"):
        write_iconqa("train", pid)
    assert [sample.uid for sample in load_iconqa(tmp_path).train] == ["2", "9", "11", "100"]


@pytest.mark.parametrize("inside", [".", "iconqa_data", "iconqa_data/iconqa"])
def test_any_of_the_three_folders_may_be_named(tmp_path, write_iconqa, monkeypatch, inside):
    write_iconqa("train", "1")
    (tmp_path / "iconqa_data" / "pid2skills.json").write_text('{"1": ["counting", "time"]}')
    assert load_iconqa(tmp_path / inside).train[0].group == "counting"
    monkeypatch.chdir(tmp_path / inside)
    assert load_iconqa(Path(".")).train[0].group == "counting"


def test_group_is_the_first_skill_and_grade_and_task_where_there_is_none(tmp_path, write_iconqa):
    for pid in ("1", "2", "3"):
        write_iconqa("train", pid)
    write_iconqa("train", "4", grade=None)
    skills = {"1": ["time", "algebra"], "2": []}
    (tmp_path / "iconqa_data" / "pid2skills.json").write_text(json.dumps(skills))
    assert [sample.group for sample in load_iconqa(tmp_path).train] == [
        "time",
        "grade2 choose_txt",
        "grade2 choose_txt",
        "no grade choose_txt",
    ]


def test_pid_splits_says_what_belongs_to_a_split(tmp_path, write_iconqa):
    for pid in ("1", "2", "3"):
        write_iconqa("train", pid)
    write_iconqa("test", "8")
    splits = {"choose_txt_train": [1, "3", "4"], "choose_txt_test": ["8"]}
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text(json.dumps(splits))
    questions = load_iconqa(tmp_path)
    assert [sample.uid for sample in questions.train] == ["1", "3"]
    assert [sample.uid for sample in questions.test] == ["8"]
    assert questions.skipped == {iconqa.NO_FOLDER: 1, iconqa.NOT_LISTED: 1}


def test_pid_splits_without_the_split_names_the_key_and_the_file(tmp_path, write_iconqa):
    write_iconqa("train", "1")
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text('{"train": []}')
    with pytest.raises(DataError, match=r"pid_splits\.json.*'choose_txt_train'.*keys are: train"):
        load_iconqa(tmp_path)


def test_what_cannot_be_asked_is_left_out_and_counted(tmp_path, write_iconqa):
    write_iconqa("train", "1")
    write_iconqa("train", "2", question=" ")
    write_iconqa("train", "3", choices=["only"])
    write_iconqa("train", "4", choices=None)
    write_iconqa("train", "5", choices=["choice_0.png", "choice_1.png"])
    write_iconqa("train", "6", choices=["one", 2])
    write_iconqa("train", "7", answer=2)
    write_iconqa("train", "8", answer="1")
    write_iconqa("train", "9", answer=True)
    write_iconqa("train", "10", choices=[str(number) for number in range(11)])
    (write_iconqa("train", "11") / "image.png").unlink()
    (write_iconqa("train", "12") / "data.json").unlink()
    questions = load_iconqa(tmp_path)
    assert [sample.uid for sample in questions.train] == ["1"]
    assert questions.skipped == {
        "question has no text": 1,
        "fewer than two choices": 2,
        "choices are pictures": 1,
        "a choice is not text": 1,
        "answer is not one of the choices": 3,
        "more than 10 choices": 1,
        MISSING_PICTURE: 1,
        iconqa.NO_DATA_FILE: 1,
    }


def test_malformed_json_names_the_file(tmp_path, write_iconqa):
    file = write_iconqa("train", "1") / "data.json"
    file.write_text('{"question": ')
    with pytest.raises(DataError, match="not valid JSON") as caught:
        load_iconqa(tmp_path)
    assert str(file) in str(caught.value)


def test_the_real_sample_is_read_as_counted_by_hand(sample_data):
    questions = load_iconqa(sample_data / "iconqa")
    assert (len(questions.train), len(questions.test)) == (22, 9)
    assert questions.skipped == {
        iconqa.UNREAD_TASKS["choose_img"]: 22 + 9,
        iconqa.UNREAD_TASKS["fill_in_blank"]: 22 + 9,
    }
    files = (sample_data / "iconqa").glob("iconqa_data/iconqa/train/choose_txt/*/data.json")
    grades = Counter(json.loads(file.read_text())["grade"] for file in files)
    groups = Counter(sample.group.removesuffix(" choose_txt") for sample in questions.train)
    assert groups == grades
    assert load_iconqa(sample_data / "iconqa") == questions
