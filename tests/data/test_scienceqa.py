import json
from collections import Counter

import pytest

from fednano_flwr.data.defects import MISSING_PICTURE, UNNAMED_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.sources import scienceqa
from fednano_flwr.data.sources.scienceqa import ScienceQA
from tests.data.conftest import settings


def read(path, split="train"):
    """The samples of a split, and how many were left out for which reason."""
    found = [problem for _, problem in ScienceQA(path).read(split).problems]
    samples = [problem for problem in found if isinstance(problem, Sample)]
    return samples, Counter(problem for problem in found if not isinstance(problem, Sample))


def test_a_question_with_a_picture_is_read_with_every_field(write_scienceqa, write_picture):
    path = write_scienceqa({"5": {"image": "image.png", "hint": "Look."}}, train=["5"], test=[])
    image = write_picture(path / "images" / "train" / "5" / "image.png")
    ((sample,), _) = read(path)
    assert (sample.uid, sample.question, sample.answer) == ("5", "Which is it?", 2)
    assert sample.choices == ("this", "that", "neither")
    assert (sample.group, sample.subject) == ("physics", "natural science")
    assert (sample.context, sample.images) == ("Look.", (Picture(image),))


@pytest.mark.parametrize("no_image", [None, ""])
def test_a_question_without_a_picture_is_text_only(write_scienceqa, no_image):
    path = write_scienceqa({"1": {"image": no_image, "hint": None}}, train=["1"], test=[])
    ((sample,), _) = read(path)
    assert sample.images == ()
    assert sample.context == ""


def test_a_split_is_what_pid_splits_lists_in_numeric_order(write_scienceqa):
    problems = {pid: {} for pid in ("1", "2", "3", "10")}
    path = write_scienceqa(problems, train=["10", "2"], val=["1"], test=["3"], minitest=["1"])
    assert [sample.uid for sample in read(path)[0]] == ["2", "10"]
    assert [sample.uid for sample in read(path, "val")[0]] == ["1"]
    assert [sample.uid for sample in read(path, "test")[0]] == ["3"]


def test_pictures_of_a_small_split_lie_with_the_split_it_is_part_of(write_scienceqa, write_picture):
    path = write_scienceqa({"5": {"image": "image.png"}}, minitest=["5"])
    image = write_picture(path / "images" / "test" / "5" / "image.png")
    assert read(path, "minitest")[0][0].images == (Picture(image),)


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
    samples, skipped = read(write_scienceqa(problems, train=[*problems, "99"], test=[]))
    assert [sample.uid for sample in samples] == ["1"]
    assert skipped == {
        "choices are pictures": 1,
        "fewer than two choices": 1,
        "answer is not one of the choices": 2,
        MISSING_PICTURE: 1,
        UNNAMED_PICTURE: 2,
        scienceqa.NOT_IN_PROBLEMS: 1,
    }


def test_missing_file_is_named_with_the_layout(write_scienceqa):
    path = write_scienceqa({"1": {}}, train=["1"], test=[])
    (path / "pid_splits.json").unlink()
    with pytest.raises(DataError, match=r"pid_splits\.json is not there.*dataset\.path") as caught:
        ScienceQA(path).check_split("train")
    assert scienceqa.LAYOUT in str(caught.value)


@pytest.mark.parametrize("file", ["problems.json", "pid_splits.json"])
@pytest.mark.parametrize("content", [b'{"1": ', b"\xff\xfe{}", b"[]"])
def test_malformed_json_names_the_file(write_scienceqa, file, content):
    path = write_scienceqa({"1": {}}, train=["1"], test=[])
    (path / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path / file) in str(caught.value)


def test_a_split_that_is_not_listed_names_those_there_are(write_scienceqa):
    path = write_scienceqa({"1": {}}, train=["1"], test=[])
    with pytest.raises(DataError, match="under 'minival'; its keys are: test, train"):
        ScienceQA(path).check_split("minival")


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
    assert Counter(sample.group for sample in questions.train) == Counter(
        problem["topic"] for problem in text_only
    )
    assert load_questions(settings(path=str(path), max_skipped=0.5)) == questions
