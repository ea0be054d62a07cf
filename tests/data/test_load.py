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


def test_each_dataset_loads_by_its_name(sample_data):
    for name in LAYOUTS:
        dataset = settings(name=name, path=str(sample_data / name), max_skipped=0.5)
        check_dataset(dataset)
        questions = load_questions(dataset)
        assert questions.name == name
        assert len(questions.train) and len(questions.test)


@pytest.mark.parametrize("use", [check_dataset, load_questions])
class TestBeforeAndWhenReading:
    def test_an_unknown_name_lists_those_there_are(self, use):
        with pytest.raises(DataError, match="'sciencqa': must be one of iconqa, scienceqa"):
            use(settings(name="sciencqa"))

    def test_a_missing_folder_says_path_layout_and_what_to_do(self, use, tmp_path):
        with pytest.raises(DataError, match=r"set dataset\.path") as caught:
            use(settings(name="iconqa", path=str(tmp_path / "nowhere")))
        assert str(tmp_path / "nowhere") in str(caught.value)
        assert LAYOUTS["iconqa"] in str(caught.value)

    @pytest.mark.parametrize("name", sorted(LAYOUTS))
    def test_a_folder_of_something_else_says_the_layout(self, use, tmp_path, name):
        with pytest.raises(DataError, match=r"Set dataset\.path") as caught:
            use(settings(name=name, path=str(tmp_path)))
        assert LAYOUTS[name].splitlines()[0] in str(caught.value)

    def test_a_module_that_is_not_installed_is_named(self, use):
        with pytest.raises(ResourceError, match="no_such_module is not installed"):
            use(settings(path="module:no_such_module/x"))

    @pytest.mark.parametrize(
        ("name", "tasks", "says"),
        [
            ("iconqa", "choose_text", "choose_txt, choose_img, fill_in_blank one or more"),
            ("iconqa", "", "must be all, or of"),
            ("iconqa", "all,choose_img", "must be all, or of"),
            ("scienceqa", "choose_txt", "for scienceqa it must be all."),
        ],
    )
    def test_a_task_that_is_not_there_names_those_that_are(
        self, use, write_scienceqa, write_iconqa, tmp_path, name, tasks, says
    ):
        write_scienceqa({"1": {}}, train=["1"], test=[])
        write_iconqa("train", "1")
        with pytest.raises(DataError, match=says):
            use(settings(name=name, path=str(tmp_path), tasks=tasks))

    def test_a_split_that_is_not_there_is_refused(self, use, write_scienceqa):
        path = write_scienceqa({"1": {}}, train=["1"], test=[])
        with pytest.raises(DataError, match="'minitest'"):
            use(settings(path=str(path), test_split="minitest"))

    def test_an_unknown_partitioner_is_refused(self, use, write_scienceqa):
        path = write_scienceqa({"1": {}}, train=["1"], test=[])
        with pytest.raises(DataError, match="must be one of dirichlet, iid"):
            use(settings(path=str(path), partitioner="natural"))


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["ScienceQA-FULL/train-00000-of-00001.parquet"], "ScienceQA-FULL/train-0"),
        (["train-00000-of-00001.parquet"], "such as train-0"),
        (["dataset_dict.json", "train/state.json"], "load_from_disk"),
        (["dataset_info.json", "data-00000-of-00001.arrow"], "load_from_disk"),
        (["train.jsonl", "images/0.png"], "images, train.jsonl"),
        ([f"{letter}.csv" for letter in "abcdefg"], "a.csv, b.csv, c.csv, d.csv, e.csv, …"),
    ],
)
def test_a_folder_of_another_form_is_told_what_it_holds_and_all_layouts(
    tmp_path, name, files, says
):
    for file in files:
        (tmp_path / "data set" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data set" / file).touch()
    with pytest.raises(DataError) as caught:
        check_dataset(settings(name=name, path=str(tmp_path / "data set")))
    assert LAYOUTS[name] in str(caught.value) and OWN_QUESTIONS in str(caught.value)
    assert name != "scienceqa" or says in str(caught.value)


def test_files_of_a_split_by_another_name_are_named_with_the_layout(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    with pytest.raises(DataError, match=r"train\.parquet") as caught:
        check_dataset(settings(path=str(tmp_path)))
    assert LAYOUTS["scienceqa"] in str(caught.value)


def test_iconqa_read_as_scienceqa_says_which_it_is(write_iconqa, tmp_path):
    write_iconqa("train", "1")
    with pytest.raises(DataError, match="looks like iconqa"):
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
def test_a_folder_that_cannot_be_read_is_named(
    write_scienceqa, write_picture, write_iconqa, tmp_path, monkeypatch, name
):
    path = write_scienceqa({"1": {"image": "image.png"}}, train=["1"], test=[])
    write_picture(path / "images" / "train" / "1" / "image.png")
    for split in ("train", "test"):
        write_iconqa(split, split)

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
        load_questions(settings(name=name, path=str(tmp_path)))
    assert str(tmp_path) in str(caught.value)


def test_tasks_are_read_alone(write_iconqa, tmp_path):
    for split, pid in (("train", "1"), ("test", "2")):
        for number, task in enumerate(("choose_txt", "choose_img", "fill_in_blank")):
            write_iconqa(split, f"{pid}{number}", task=task)
    dataset = settings(name="iconqa", path=str(tmp_path), tasks=" fill_in_blank, choose_txt")
    assert load_questions(dataset).train.uids == ["10", "12"]


def test_no_usable_training_question_lists_why(write_scienceqa):
    problems = {"1": {"image": "image.png"}, "2": {"image": "image.png"}, "3": {"answer": 9}}
    path = write_scienceqa(problems, train=["1", "2", "3"], test=[])
    with pytest.raises(DataError, match="2 picture file is missing; 1 answer is not one of"):
        load_questions(settings(path=str(path), max_skipped=1))


def test_more_unreadable_questions_than_allowed_stop_the_run_with_the_list(write_scienceqa):
    bad = {str(pid): {"image": "image.png"} for pid in range(7)}
    good = {str(pid): {} for pid in range(7, 18)}
    path = write_scienceqa({**bad, **good}, train=[*bad, *list(good)[:8]], test=list(good)[8:])
    with pytest.raises(DataError, match=r"7 of 18 questions .* 38\.9 %.*max-skipped is 0\.3") as e:
        load_questions(settings(path=str(path), max_skipped=0.3))
    assert "train: 7 picture file is missing (0, 1, 2, 3, 4, …)" in str(e.value)
    (file,) = (line.strip() for line in str(e.value).splitlines() if line.endswith("skipped.json"))
    with open(file) as opened:
        assert '"6"' in opened.read()
    questions = load_questions(settings(path=str(path), max_skipped=0.4))
    assert questions.skipped == {MISSING_PICTURE: 7}


def test_exactly_the_allowed_share_of_unreadable_questions_passes(write_scienceqa):
    problems = {"1": {"answer": 9}, **{str(pid): {} for pid in range(2, 11)}}
    path = write_scienceqa(problems, train=list(problems), test=[])
    assert len(load_questions(settings(path=str(path), max_skipped=0.1)).train) == 9
    with pytest.raises(DataError, match="1 of 10"):
        load_questions(settings(path=str(path), max_skipped=0.09))


def test_a_test_question_that_is_trained_on_is_refused(write_scienceqa):
    path = write_scienceqa({"1": {}, "2": {}}, train=["1", "2"], test=["2"])
    with pytest.raises(DataError, match=r"1 question ids .* in both train and test, '2'"):
        load_questions(settings(path=str(path)))


def test_two_questions_of_one_id_are_refused(write_iconqa, tmp_path):
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


def test_skip_reasons_are_listed_most_frequent_first():
    assert describe_skipped(Counter(b=1, c=2, a=1)) == "2 c; 1 a; 1 b"
    assert describe_skipped(Counter()) == "none"
