import json
from collections import Counter
from pathlib import Path

import pytest

from fednano_flwr.data.defects import MISSING_PICTURE, UNNAMED_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources import iconqa
from fednano_flwr.data.sources.iconqa import TASKS, IconQA, find_root
from tests.data.conftest import settings


def read(path, split="train", tasks=TASKS):
    """The samples of a split, and how many were left out for which reason."""
    found = [problem for _, problem in IconQA(find_root(path), tasks).read(split).problems]
    samples = [problem for problem in found if isinstance(problem, Sample)]
    return samples, Counter(problem for problem in found if not isinstance(problem, Sample))


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


def test_a_question_with_pictures_to_choose_from_has_no_words_for_them(tmp_path, write_iconqa):
    folder = write_iconqa("train", "7", task="choose_img", hint="Look.")
    ((sample,), _) = read(tmp_path)
    assert (sample.choices, sample.answer, sample.num_options) == ((), 1, 2)
    names = ("image.png", "choice_0.png", "choice_1.png")
    assert sample.pictures == tuple(Picture(folder / name) for name in names)
    assert (sample.group, sample.subject) == ("grade2/choose_img", "choose_img")
    assert sample.context == "Look."


def test_a_blank_to_fill_in_has_a_free_answer_and_no_options(tmp_path, write_iconqa):
    write_iconqa("train", "7", task="fill_in_blank", answer="7,364")
    ((sample,), _) = read(tmp_path)
    assert (sample.free_answer, sample.answer, sample.num_options) == ("7,364", None, 0)
    assert (sample.group, sample.subject) == ("grade2/fill_in_blank", "fill_in_blank")


def test_splits_and_tasks_are_read_alone(tmp_path, write_iconqa):
    for split, pid in (("train", "1"), ("val", "2"), ("test", "3")):
        write_iconqa(split, pid)
        write_iconqa(split, f"{pid}0", task="choose_img")
        write_iconqa(split, f"{pid}1", task="fill_in_blank")
    assert [sample.uid for sample in read(tmp_path)[0]] == ["1", "10", "11"]
    assert [sample.uid for sample in read(tmp_path, "val")[0]] == ["2", "20", "21"]
    tasks = ("choose_txt", "fill_in_blank")
    assert [sample.uid for sample in read(tmp_path, "test", tasks)[0]] == ["3", "31"]


def test_order_is_numeric_whatever_order_the_disk_has(tmp_path, write_iconqa):
    for pid in ("100", "9", "11", "2"):
        write_iconqa("train", pid)
    write_iconqa("train", "10", task="choose_img")
    assert [sample.uid for sample in read(tmp_path)[0]] == ["2", "9", "10", "11", "100"]


@pytest.mark.parametrize("inside", [".", "iconqa_data", "iconqa_data/iconqa"])
def test_any_of_the_three_folders_may_be_named(tmp_path, write_iconqa, monkeypatch, inside):
    write_iconqa("train", "1")
    (tmp_path / "iconqa_data" / "pid2skills.json").write_text('{"1": ["counting", "time"]}')
    assert read(tmp_path / inside)[0][0].group == "counting"
    monkeypatch.chdir(tmp_path / inside)
    assert read(Path("."))[0][0].group == "counting"


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
    write_iconqa("test", "8")
    splits = {"choose_txt_train": [1, "3", "4"], "choose_txt_test": ["8"]}
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text(json.dumps(splits))
    samples, skipped = read(tmp_path, tasks=("choose_txt",))
    assert [sample.uid for sample in samples] == ["1", "3"]
    assert skipped == {iconqa.NO_FOLDER: 1, iconqa.NOT_LISTED: 1}
    samples, skipped = read(tmp_path, "test", ("choose_txt",))
    assert ([sample.uid for sample in samples], skipped) == (["8"], Counter())


def test_a_small_split_is_part_of_a_folder_that_pid_splits_names(tmp_path, write_iconqa):
    for pid in ("1", "2", "3"):
        write_iconqa("test", pid)
    source = IconQA(find_root(tmp_path), ("choose_txt",))
    with pytest.raises(DataError, match=r"'minitest' is defined by .*pid_splits\.json"):
        source.check_split("minitest")
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text('{"choose_txt_minitest": [2]}')
    samples, skipped = read(tmp_path, "minitest", ("choose_txt",))
    assert ([sample.uid for sample in samples], skipped) == (["2"], Counter())


def test_pid_splits_without_the_split_names_the_key_and_the_file(tmp_path, write_iconqa):
    write_iconqa("train", "1")
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text('{"train": []}')
    with pytest.raises(DataError, match=r"pid_splits\.json.*'choose_txt_train'.*keys are: train"):
        IconQA(find_root(tmp_path), ("choose_txt",)).check_split("train")


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
    splits = {"choose_txt_train": [1], "choose_txt_test": [2]}
    (tmp_path / "iconqa_data" / "pid_splits.json").write_text(json.dumps(splits))
    dataset = settings(name="iconqa", path=str(tmp_path))
    assert load_questions(dataset).train.uids == ["1"]
    with pytest.raises(DataError, match="choose_img is not there"):
        load_questions(settings(name="iconqa", path=str(tmp_path), tasks="choose_img"))


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
    (write_iconqa("train", "13", task="choose_img") / "choice_1.png").unlink()
    write_iconqa("train", "14", task="choose_img", choices=["../choice_0.png", "choice_1.png"])
    write_iconqa("train", "15", task="choose_img", answer=2)
    write_iconqa("train", "16", task="fill_in_blank", answer=" ")
    write_iconqa("train", "17", task="fill_in_blank", question=None)
    samples, skipped = read(tmp_path)
    assert [sample.uid for sample in samples] == ["1"]
    assert skipped == {
        "question has no text": 2,
        "answer has no text": 1,
        UNNAMED_PICTURE: 1,
        "fewer than two choices": 2,
        "choices are pictures": 1,
        "a choice is not text": 1,
        "answer is not one of the choices": 4,
        "more than 10 choices": 1,
        MISSING_PICTURE: 2,
        iconqa.NO_DATA_FILE: 1,
    }


def test_a_question_whose_file_is_not_json_costs_itself(tmp_path, write_iconqa):
    write_iconqa("train", "1")
    for pid, content in (("2", b'{"question": '), ("3", b"[]"), ("4", b"\xff"), ("5", b"")):
        (write_iconqa("train", pid) / "data.json").write_bytes(content)
    samples, skipped = read(tmp_path)
    assert ([sample.uid for sample in samples], skipped) == (["1"], {iconqa.UNREADABLE: 4})


@pytest.mark.parametrize("file", ["pid_splits.json", "pid2skills.json"])
def test_malformed_json_about_all_questions_names_the_file(tmp_path, write_iconqa, file):
    write_iconqa("train", "1")
    (tmp_path / "iconqa_data" / file).write_text('{"1": ')
    with pytest.raises(DataError, match="not valid JSON") as caught:
        read(tmp_path)
    assert str(tmp_path / "iconqa_data" / file) in str(caught.value)


def test_the_real_sample_is_read_as_counted_by_hand(sample_data):
    settings_of = settings(name="iconqa", path=str(sample_data / "iconqa"))
    questions = load_questions(settings_of)
    assert (len(questions.train), len(questions.test)) == (66, 27)
    assert not questions.skipped
    assert Counter(questions.train.subjects) == dict.fromkeys(TASKS, 22)
    files = (sample_data / "iconqa").glob("iconqa_data/iconqa/train/*/*/data.json")
    groups = Counter(f"{json.loads(file.read_text())['grade']}/{file.parts[-3]}" for file in files)
    assert Counter(questions.train.groups) == groups
    assert load_questions(settings_of) == questions
