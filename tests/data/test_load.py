from collections import Counter

import pytest

from fednano_flwr.base.resources import ResourceError
from fednano_flwr.data.defects import MISSING_PICTURE, describe_skipped
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import check_dataset, load_questions
from fednano_flwr.data.sources import OWN_QUESTIONS, find_source, source_names
from fednano_flwr.data.sources.scienceqa import HUB_ID
from tests.data.conftest import settings

LAYOUTS = {name: find_source(name).layout for name in source_names()}


@pytest.fixture
def folder(write_scienceqa, write_iconqa, tmp_path):
    """One question of each data set."""
    write_scienceqa({"1": {}}, train=["1"], test=[])
    write_iconqa("train", "1")
    write_iconqa("test", "2")
    return tmp_path


@pytest.mark.parametrize("use", [check_dataset, load_questions])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "sciencqa"}, "'sciencqa': must be one of iconqa, messages, scienceqa, table"),
        ({"name": "iconqa", "path": "nowhere"}, r"/nowhere on this machine"),
        ({"name": "iconqa", "tasks": "choose_text"}, "choose_txt, choose_img, fill_in_blank one"),
        ({"name": "iconqa", "tasks": ""}, "must be all, or of"),
        ({"name": "iconqa", "tasks": "all,choose_img"}, "must be all, or of"),
        ({"tasks": "choose_txt"}, "for scienceqa it must be all"),
        ({"test_split": "minitest"}, "'minitest'"),
        ({"partitioner": "natural"}, "must be one of dirichlet, iid"),
        ({"revision": "v1"}, r"dataset\.revision is 'v1'"),
        ({"name": "iconqa", "revision": "v1"}, r"dataset\.revision is 'v1'"),
        ({"path": "module:no_such_module/x"}, "no_such_module is not installed"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_and_when_reading(use, folder, changes, says):
    with pytest.raises((DataError, ResourceError), match=says):
        use(settings(**{"path": str(folder), **changes}))


@pytest.mark.parametrize("name", ["iconqa", "scienceqa"])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "nothing"),
        (["ScienceQA-FULL/train-00000-of-00001.parquet"], "ScienceQA-FULL/train-0"),
        (["train-00000-of-00001.parquet"], "such as train-0"),
        (["dataset_dict.json", "train/state.json"], "load_from_disk"),
        (["dataset_info.json", "state.json", "data-00000-of-00001.arrow"], "load_from_disk"),
        (["train.jsonl", "images/0.png"], "images, train.jsonl"),
        ([f"{letter}.csv" for letter in "abcdefg"], "a.csv, b.csv, c.csv, d.csv, e.csv, …"),
    ],
)
def test_a_folder_of_another_form_is_told_what_it_holds_and_all_layouts(
    tmp_path, name, files, says
):
    (tmp_path / "data set").mkdir()
    for file in files:
        (tmp_path / "data set" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data set" / file).touch()
    with pytest.raises(DataError) as caught:
        check_dataset(settings(name=name, path=str(tmp_path / "data set")))
    assert LAYOUTS[name] in str(caught.value) and OWN_QUESTIONS in str(caught.value)
    assert name != "scienceqa" or says in str(caught.value)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_folder_that_datasets_saved_is_no_source_s_and_says_so(tmp_path, name):
    for file in ("dataset_dict.json", "train/state.json", "train/data.arrow"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(DataError, match="load_from_disk"):
        check_dataset(settings(name=name, path=str(tmp_path)))


def test_a_data_set_of_another_name_says_which_it_is(write_iconqa, tmp_path):
    write_iconqa("train", "1")
    with pytest.raises(DataError, match=r"looks like dataset\.name = iconqa"):
        check_dataset(settings(path=str(tmp_path)))


def test_whatever_else_is_named_is_told_how_own_questions_are_written(tmp_path):
    (tmp_path / "train.jsonl").touch()
    for changes in (
        {"name": "vqa", "path": str(tmp_path)},
        {"path": str(tmp_path / "train.jsonl")},
        {"path": "HuggingFaceM4/VQAv2"},
        {"name": "iconqa", "path": HUB_ID},
    ):
        with pytest.raises(DataError) as caught:
            check_dataset(settings(**changes))
        assert OWN_QUESTIONS in str(caught.value)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch, name):
    (folder / "images" / "train").mkdir(parents=True)

    def refuse(place):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
        load_questions(settings(name=name, path=str(folder)))
    assert str(folder) in str(caught.value)


def test_no_usable_training_question_lists_why(write_scienceqa):
    problems = {"1": {"image": "image.png"}, "2": {"image": "image.png"}, "3": {"answer": 9}}
    path = write_scienceqa(problems, train=["1", "2", "3"], test=[])
    with pytest.raises(DataError, match="2 picture file is missing; 1 answer is not one of"):
        load_questions(settings(path=str(path), max_skipped=1))
    assert describe_skipped(Counter(b=1, c=2, a=1)) == "2 c; 1 a; 1 b"
    assert describe_skipped(Counter()) == "none"


def test_more_unreadable_questions_than_allowed_stop_the_run_with_the_list(write_scienceqa):
    bad = {str(pid): {"image": "image.png"} for pid in range(7)}
    good = {str(pid): {} for pid in range(7, 20)}
    path = write_scienceqa({**bad, **good}, train=[*bad, *list(good)[:8]], test=list(good)[8:])
    with pytest.raises(DataError, match=r"7 of 20 questions .* 35\.0 %.*max-skipped is 0\.34") as e:
        load_questions(settings(path=str(path), max_skipped=0.34))
    assert "train: 7 picture file is missing (0, 1, 2 and 4 more)" in str(e.value)
    assert f"there is no {path}/images/train/0/image.png" in str(e.value)
    (file,) = (line.strip() for line in str(e.value).splitlines() if line.endswith("skipped.json"))
    with open(file) as opened:
        assert '"6"' in opened.read()
    questions = load_questions(settings(path=str(path), max_skipped=0.35))
    assert questions.skipped == {MISSING_PICTURE: 7}


def test_a_question_of_both_splits_and_an_id_of_two_questions_are_refused(
    write_scienceqa, write_iconqa, tmp_path
):
    path = write_scienceqa({"1": {}, "2": {}}, train=["1", "2"], test=["2"])
    with pytest.raises(DataError, match=r"1 question ids .* in both train and test, '2'"):
        load_questions(settings(path=str(path)))
    for task in ("choose_txt", "fill_in_blank"):
        write_iconqa("train", "1", task=task)
        write_iconqa("test", f"{task}", task=task)
    with pytest.raises(DataError, match=r"two questions .* have the id '1'"):
        load_questions(settings(name="iconqa", path=str(tmp_path)))


def test_where_clients_cut_their_own_test_questions_the_test_split_is_not_read(write_scienceqa):
    path = write_scienceqa({"1": {}, "2": {}}, train=["1", "2"], val=[])
    dataset = settings(path=str(path), test_fraction=0.5)
    check_dataset(dataset)
    assert len(load_questions(dataset).test) == 0
