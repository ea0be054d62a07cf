import json
from collections import Counter

import pytest

from fednano_flwr.data import scienceqa
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import MISSING_PICTURE
from fednano_flwr.data.scienceqa import load_scienceqa


def test_a_question_with_a_picture_is_read_with_every_field(write_scienceqa, write_picture):
    path = write_scienceqa({"5": {"image": "image.png", "hint": "Look."}}, train=["5"], test=[])
    image = write_picture(path / "images" / "train" / "5" / "image.png")
    (sample,) = load_scienceqa(path).train
    assert (sample.uid, sample.question, sample.answer) == ("5", "Which is it?", 2)
    assert sample.choices == ("this", "that", "neither")
    assert (sample.group, sample.context, sample.image) == ("physics", "Look.", image)


@pytest.mark.parametrize("no_image", [None, ""])
def test_a_question_without_a_picture_is_text_only(write_scienceqa, no_image):
    path = write_scienceqa({"1": {"image": no_image, "hint": None}}, train=["1"], test=[])
    (sample,) = load_scienceqa(path).train
    assert sample.image is None
    assert sample.context == ""


def test_only_train_and_test_are_read(write_scienceqa):
    problems = {pid: {} for pid in ("1", "2", "3", "10")}
    splits = {"train": ["10", "2"], "val": ["1"], "test": ["3"], "minitest": ["1"]}
    questions = load_scienceqa(write_scienceqa(problems, **splits))
    assert [sample.uid for sample in questions.train] == ["2", "10"]
    assert [sample.uid for sample in questions.test] == ["3"]
    assert not questions.skipped


def test_what_cannot_be_asked_is_left_out_and_counted(write_scienceqa):
    problems = {
        "1": {},
        "2": {"choices": ["choice_0.png", "choice_1.PNG"]},
        "3": {"choices": ["only"]},
        "4": {"answer": 3},
        "5": {"answer": -1},
        "6": {"image": "image.png"},
        "7": {"image": {"path": "image.png"}},
    }
    questions = load_scienceqa(write_scienceqa(problems, train=[*problems, "99"], test=[]))
    assert [sample.uid for sample in questions.train] == ["1"]
    assert questions.skipped == {
        "choices are pictures": 1,
        "fewer than two choices": 1,
        "answer is not one of the choices": 2,
        MISSING_PICTURE: 1,
        scienceqa.UNNAMED_PICTURE: 1,
        scienceqa.NOT_IN_PROBLEMS: 1,
    }


def test_missing_file_is_named_with_the_layout(write_scienceqa):
    path = write_scienceqa({"1": {}}, train=["1"], test=[])
    (path / "pid_splits.json").unlink()
    with pytest.raises(DataError, match=r"pid_splits\.json is not there.*dataset\.path") as caught:
        load_scienceqa(path)
    assert scienceqa.LAYOUT in str(caught.value)


@pytest.mark.parametrize("file", ["problems.json", "pid_splits.json"])
@pytest.mark.parametrize("content", [b'{"1": ', b"\xff\xfe{}", b"[]"])
def test_malformed_json_names_the_file(write_scienceqa, file, content):
    path = write_scienceqa({"1": {}}, train=["1"], test=[])
    (path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_scienceqa(path)
    assert str(path / file) in str(caught.value)


def test_the_real_sample_is_read_as_counted_by_hand(sample_data):
    path = sample_data / "scienceqa"
    problems = json.loads((path / "problems.json").read_text())
    train = [problem for problem in problems.values() if problem["split"] == "train"]
    text_only = [problem for problem in train if problem["image"] is None]
    assert (len(train), len(text_only)) == (1041, 520)

    questions = load_scienceqa(path)
    assert (len(questions.train), len(questions.test)) == (520, 241)
    assert questions.skipped == {MISSING_PICTURE: 1041 - 520}
    assert sum(sample.image is not None for sample in questions.test) == 107
    assert not any(sample.image for sample in questions.train)
    assert Counter(sample.group for sample in questions.train) == Counter(
        problem["topic"] for problem in text_only
    )
    assert load_scienceqa(path) == questions
