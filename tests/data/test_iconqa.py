import json
from collections import Counter

import pytest

from fednano_flwr.data.defects import MISSING_PICTURE, UNNAMED_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources import iconqa
from fednano_flwr.data.sources.iconqa import TASKS, IconQA, find_root
from tests.data.conftest import read as read_split
from tests.data.conftest import settings


def read(path, split="train", tasks=TASKS):
    return read_split(IconQA(find_root(path), tasks), split)


def test_a_question_with_options_in_words_is_read_with_every_field(tmp_path, write_iconqa):
    folder = write_iconqa("train", "7", question="Odd or even?", choices=["odd", "even"], answer=0)
    assert read(tmp_path)[0] == [
        Sample(
            uid="7",
            question="Odd or even?",
            group="grade2/choose_txt",
            subject="choose_txt",
            choices=("odd", "even"),
            answer=0,
            images=(Picture(folder / "image.png"),),
        )
    ]


def test_pictures_to_choose_from_and_blanks_to_fill_in_have_no_options_in_words(
    tmp_path, write_iconqa
):
    folder = write_iconqa("train", "7", task="choose_img", hint="Look.")
    write_iconqa("train", "8", task="fill_in_blank", answer="7,364")
    ((pictured, blank), _) = read(tmp_path)
    assert (pictured.choices, pictured.answer, pictured.num_options) == ((), 1, 2)
    names = ("image.png", "choice_0.png", "choice_1.png")
    assert pictured.pictures == tuple(Picture(folder / name) for name in names)
    assert (pictured.group, pictured.context) == ("grade2/choose_img", "Look.")
    assert (blank.free_answer, blank.answer, blank.num_options) == ("7,364", None, 0)
    assert (blank.group, blank.subject) == ("grade2/fill_in_blank", "fill_in_blank")


def test_splits_and_tasks_are_read_alone_in_numeric_order(tmp_path, write_iconqa):
    for split, pid in (("train", "2"), ("val", "2"), ("test", "3")):
        write_iconqa(split, f"{pid}1", task="fill_in_blank")
        write_iconqa(split, f"{pid}0", task="choose_img")
        write_iconqa(split, pid)
    assert [sample.uid for sample in read(tmp_path)[0]] == ["2", "20", "21"]
    assert [sample.uid for sample in read(tmp_path, "val")[0]] == ["2", "20", "21"]
    tasks = ("choose_txt", "fill_in_blank")
    assert [sample.uid for sample in read(tmp_path, "test", tasks)[0]] == ["3", "31"]
    dataset = settings(name="iconqa", path=str(tmp_path), tasks=" fill_in_blank, choose_txt")
    assert load_questions(dataset).test.uids == ["3", "31"]


@pytest.mark.parametrize("inside", [".", "iconqa_data", "iconqa_data/iconqa"])
def test_any_of_the_three_folders_may_be_named(tmp_path, write_iconqa, monkeypatch, inside):
    write_iconqa("train", "1")
    (tmp_path / "iconqa_data" / "pid2skills.json").write_text('{"1": ["counting", "time"]}')
    monkeypatch.chdir(tmp_path / inside)
    for path in (tmp_path / inside, type(tmp_path)(".")):
        assert read(path)[0][0].group == "counting"


def test_group_is_the_first_skill_and_grade_and_task_where_there_is_none(tmp_path, write_iconqa):
    for pid in ("1", "2", "3"):
        write_iconqa("train", pid)
    write_iconqa("train", "4", grade=None)
    skills = {"1": ["time", "algebra"], "2": []}
    (tmp_path / "iconqa_data" / "pid2skills.json").write_text(json.dumps(skills))
    assert [(sample.group, sample.subject) for sample in read(tmp_path)[0]] == [
        ("time", "time"),
        ("grade2/choose_txt", "choose_txt"),
        ("grade2/choose_txt", "choose_txt"),
        ("no grade/choose_txt", "choose_txt"),
    ]


def test_pid_splits_says_what_belongs_to_a_split(tmp_path, write_iconqa):
    for pid in ("1", "2", "3"):
        write_iconqa("train", pid)
        write_iconqa("test", f"{pid}0")
    source = IconQA(find_root(tmp_path), ("choose_txt",))
    with pytest.raises(DataError, match=r"'minitest' is defined by .*pid_splits\.json"):
        source.check_split("minitest")
    splits = {"choose_txt_train": [1, "3", "4"], "choose_txt_minitest": ["20"]}
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text(json.dumps(splits))
    samples, skipped = read_split(source)
    assert [sample.uid for sample in samples] == ["1", "3"]
    assert skipped == {iconqa.NO_FOLDER: 1, iconqa.NOT_LISTED: 1}
    samples, skipped = read_split(source, "minitest")
    assert ([sample.uid for sample in samples], skipped) == (["20"], Counter())
    with pytest.raises(DataError, match=r"pid_splits\.json.*'choose_txt_test'.*keys are: choose"):
        source.check_split("test")


def test_a_split_without_a_task_s_folder_names_it_and_the_tasks_there_are(tmp_path, write_iconqa):
    write_iconqa("train", "1")
    write_iconqa("train", "2", task="choose_img")
    write_iconqa("test", "3")
    source = IconQA(find_root(tmp_path), ("choose_txt", "choose_img"))
    source.check_split("train")
    with pytest.raises(DataError, match=r"test/choose_img is not there.*that are: choose_txt\."):
        source.check_split("test")
    with pytest.raises(DataError, match="there is none"):
        source.check_split("val")


def test_all_tasks_are_those_that_the_copy_has(tmp_path, write_iconqa):
    for split, pid in (("train", "1"), ("test", "2")):
        write_iconqa(split, pid)
    assert load_questions(settings(name="iconqa", path=str(tmp_path))).train.uids == ["1"]
    with pytest.raises(DataError, match="choose_img is not there"):
        load_questions(settings(name="iconqa", path=str(tmp_path), tasks="choose_img"))


def test_what_cannot_be_asked_is_left_out_and_counted(tmp_path, write_iconqa):
    write_iconqa("train", "1")
    write_iconqa("train", "2", choices=["choice_0.png", "choice_1.png"])
    write_iconqa("train", "3", choices=[str(number) for number in range(11)])
    write_iconqa("train", "4", task="choose_img", choices=["../choice_0.png", "choice_1.png"])
    write_iconqa("train", "5", task="choose_img", answer=2)
    write_iconqa("train", "6", task="fill_in_blank", answer=" ")
    (write_iconqa("train", "11") / "image.png").unlink()
    (write_iconqa("train", "12") / "data.json").unlink()
    (write_iconqa("train", "13", task="choose_img") / "choice_1.png").unlink()
    for pid, content in (("14", b'{"question": '), ("15", b"[]"), ("16", b"\xff"), ("17", b"")):
        (write_iconqa("train", pid) / "data.json").write_bytes(content)
    samples, skipped = read(tmp_path)
    assert [sample.uid for sample in samples] == ["1"]
    assert skipped == {
        "answer has no text": 1,
        UNNAMED_PICTURE: 1,
        "choices are pictures": 1,
        "answer is not one of the choices": 1,
        "more than 10 choices": 1,
        MISSING_PICTURE: 2,
        iconqa.NO_DATA_FILE: 1,
        iconqa.UNREADABLE: 4,
    }


@pytest.mark.parametrize("file", ["pid_splits.json", "pid2skills.json"])
def test_malformed_json_about_all_questions_names_the_file(tmp_path, write_iconqa, file):
    write_iconqa("train", "1")
    (tmp_path / "iconqa_data" / file).write_text('{"1": ')
    with pytest.raises(DataError, match="not valid JSON") as caught:
        read(tmp_path)
    assert str(tmp_path / "iconqa_data" / file) in str(caught.value)


def test_the_real_sample_is_read_as_counted_by_hand(sample_data):
    questions = load_questions(settings(name="iconqa", path=str(sample_data / "iconqa")))
    assert (len(questions.train), len(questions.test)) == (66, 27)
    assert not questions.skipped
    assert Counter(questions.train.subjects) == dict.fromkeys(TASKS, 22)
    files = (sample_data / "iconqa").glob("iconqa_data/iconqa/train/*/*/data.json")
    groups = Counter(f"{json.loads(file.read_text())['grade']}/{file.parts[-3]}" for file in files)
    assert Counter(questions.train.groups) == groups
