import json
from collections import Counter

import pytest

from fednano_flwr.data.defects import MISSING_PICTURE, UNNAMED_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.sample import Picture
from fednano_flwr.data.sources import scienceqa
from fednano_flwr.data.sources.scienceqa import ScienceQA
from tests.data.conftest import read, settings


def test_a_question_with_a_picture_is_read_with_every_field(write_scienceqa, write_picture):
    problems = {"5": {"image": "image.png", "hint": "Look."}}
    path = write_scienceqa(problems, train=["5"], minitest=["5"])
    for split, folder in (("train", "train"), ("minitest", "test")):  # small ones lie with theirs
        image = write_picture(path / "images" / folder / "5" / "image.png")
        ((sample,), _) = read(ScienceQA(path), split)
        assert (sample.uid, sample.question, sample.answer) == ("5", "Which is it?", 2)
        assert sample.choices == ("this", "that", "neither")
        assert (sample.group, sample.subject) == ("physics", "natural science")
        assert (sample.context, sample.images) == ("Look.", (Picture(image),))


def test_a_split_is_what_pid_splits_lists_in_numeric_order(write_scienceqa):
    problems = {pid: {} for pid in ("1", "2", "3", "10")}
    path = write_scienceqa(problems, train=["10", "2"], val=["1"])
    assert [sample.uid for sample in read(ScienceQA(path))[0]] == ["2", "10"]
    assert [sample.uid for sample in read(ScienceQA(path), "val")[0]] == ["1"]
    with pytest.raises(DataError, match="under 'minival'; its keys are: train, val"):
        ScienceQA(path).check_split("minival")


def test_what_cannot_be_asked_is_left_out_and_counted(write_scienceqa):
    problems = {
        "1": {},
        "2": {"choices": ["choice_0.png", "choice_1.PNG"]},
        "3": {"choices": ["only"]},
        "4": {"answer": 3},
        "5": {"answer": -1},
        "6": {"image": "image.png"},
        "7": {"image": {"path": "image.png"}},
        "8": {"image": "../1/image.png"},
    }
    path = write_scienceqa(problems, train=[*problems, "99"])
    samples, skipped = read(ScienceQA(path))
    assert [sample.uid for sample in samples] == ["1"]
    assert skipped == {
        "choices are pictures": 1,
        "fewer than two choices": 1,
        "answer is not one of the choices": 2,
        MISSING_PICTURE: 1,
        UNNAMED_PICTURE: 2,
        scienceqa.NOT_IN_PROBLEMS: 1,
    }


@pytest.mark.parametrize("file", ["problems.json", "pid_splits.json"])
@pytest.mark.parametrize("content", [b'{"1": ', b"\xff\xfe{}", b"[]", None])
def test_a_file_that_is_missing_or_malformed_is_named(write_scienceqa, file, content):
    path = write_scienceqa({"1": {}}, train=["1"], test=[])
    (path / file).unlink() if content is None else (path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_questions(settings(path=str(path)))
    assert str(path / file) in str(caught.value)
    assert (scienceqa.LAYOUT in str(caught.value)) == (content is None)


def test_the_real_sample_is_read_as_counted_by_hand(sample_data):
    path = sample_data / "scienceqa"
    problems = json.loads((path / "problems.json").read_text())
    train = [problem for problem in problems.values() if problem["split"] == "train"]
    text_only = [problem for problem in train if problem["image"] is None]
    assert (len(train), len(text_only)) == (1041, 520)

    questions = load_questions(settings(path=str(path), max_skipped=0.5))
    assert (len(questions.train), len(questions.test)) == (520, 241)
    assert questions.skipped == {MISSING_PICTURE: 1041 - 520}
    assert sum(len(sample.images) for sample in questions.test) == 107
    assert not any(sample.images for sample in questions.train)
    assert Counter(questions.train.groups) == Counter(problem["topic"] for problem in text_only)
