from collections import Counter

import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.iconqa import LAYOUT
from fednano_flwr.data.reading import describe_skipped
from fednano_flwr.data.registry import DATASETS, LAYOUTS, load_questions


def test_each_dataset_loads_by_its_name(sample_data):
    for name in DATASETS:
        questions = load_questions(name, sample_data / name)
        assert questions.name == name
        assert questions.train
        assert questions.test


def test_each_dataset_says_its_layout():
    assert LAYOUTS.keys() == DATASETS.keys()


def test_unknown_name_lists_those_there_are(tmp_path):
    with pytest.raises(DataError, match=r"'sciencqa'; the datasets there are: iconqa, scienceqa"):
        load_questions("sciencqa", tmp_path)


def test_missing_folder_says_path_layout_and_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"set dataset\.path") as caught:
        load_questions("iconqa", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert LAYOUT in str(caught.value)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_folder_of_something_else_says_the_layout(tmp_path, name):
    with pytest.raises(DataError, match=r"Set dataset\.path") as caught:
        load_questions(name, tmp_path)
    assert LAYOUTS[name] in str(caught.value)


def test_no_usable_training_question_lists_why(write_scienceqa):
    problems = {"1": {"image": "image.png"}, "2": {"image": "image.png"}, "3": {"answer": 9}}
    path = write_scienceqa(problems, train=["1", "2", "3"], test=[])
    with pytest.raises(DataError, match="2 picture file is missing; 1 answer is not one of"):
        load_questions("scienceqa", path)


def test_a_test_question_that_is_trained_on_is_refused(write_scienceqa):
    path = write_scienceqa({"1": {}, "2": {}}, train=["1", "2"], test=["2"])
    with pytest.raises(DataError, match=r"1 question ids .* in both train and test, '2'"):
        load_questions("scienceqa", path)


def test_skip_reasons_are_listed_most_frequent_first():
    assert describe_skipped(Counter(b=1, c=2, a=1)) == "2 c; 1 a; 1 b"
    assert describe_skipped(Counter()) == "none"
