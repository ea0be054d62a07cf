import pytest

from fednano_flwr.data import hub
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import MISSING_PICTURE
from fednano_flwr.data.registry import check_dataset, load_questions
from fednano_flwr.data.sample import Picture, Sample
from tests.data.conftest import png, settings


def test_a_copy_of_the_hub_s_repository_is_read_with_every_field(write_hub):
    picture = {"bytes": png(), "path": "image.png"}
    path = write_hub(
        train=[{"image": picture, "hint": "Look.", "topic": "biology"}, {"answer": 0}],
        validation=[{"question": "Valid?"}],
        test=[{"question": "Tested?"}],
    )
    questions = load_questions(settings(path=str(path)))
    assert list(questions.train) == [
        Sample(
            uid="train-0",
            question="Which is it?",
            group="biology",
            subject="natural science",
            choices=("this", "that"),
            answer=1,
            image=Picture(data=png()),
            context="Look.",
        ),
        Sample(
            uid="train-1",
            question="Which is it?",
            group="physics",
            subject="natural science",
            choices=("this", "that"),
            answer=0,
        ),
    ]
    assert [sample.uid for sample in questions.test] == ["test-0"]
    validated = load_questions(settings(path=str(path), test_split="val"))
    assert [(sample.uid, sample.question) for sample in validated.test] == [("val-0", "Valid?")]


def test_rows_that_cannot_be_asked_are_left_out_and_the_others_keep_their_numbers(write_hub):
    lost = {"bytes": None, "path": "image.png"}
    rows = [{}, {"answer": 2}, {"image": lost}, {"choices": []}, {}]
    questions = load_questions(settings(path=str(write_hub(train=rows, test=[{}])), max_skipped=1))
    assert questions.train.uids == ["train-0", "train-4"]
    assert questions.skipped == {
        "answer is not one of the choices": 1,
        MISSING_PICTURE: 1,
        "fewer than two choices": 1,
    }


def test_a_split_that_only_the_original_layout_has_is_refused(write_hub):
    path = write_hub(train=[{}], test=[{}])
    with pytest.raises(DataError, match="'minitest' is only in ScienceQA's original layout"):
        check_dataset(settings(path=str(path), test_split="minitest"))
    with pytest.raises(DataError, match=r"no data/validation-\*\.parquet"):
        check_dataset(settings(path=str(path), test_split="val"))


def test_a_damaged_file_is_named(write_hub):
    path = write_hub(train=[{}], test=[{}])
    (file,) = (path / "data").glob("train-*")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as parquet") as caught:
        load_questions(settings(path=str(path)))
    assert str(file) in str(caught.value)


def test_the_hub_id_reads_the_copy_in_the_hub_s_cache_without_a_connection(
    write_hub, tmp_path, monkeypatch
):
    copy = write_hub(train=[{}], test=[{}])
    repository = tmp_path / "hub" / "datasets--derek-thomas--ScienceQA"
    snapshot = repository / "snapshots" / "0123456789"
    snapshot.mkdir(parents=True)
    (copy / "data").rename(snapshot / "data")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_dataset(settings(path=hub.HUB_ID))
    assert load_questions(settings(path=hub.HUB_ID)).train.uids == ["train-0"]


def test_a_hub_id_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        load_questions(settings(path=hub.HUB_ID))
    assert "hf download --repo-type dataset derek-thomas/ScienceQA" in str(caught.value)


def test_of_the_hub_only_scienceqa_is_read():
    with pytest.raises(DataError, match="no folder"):
        check_dataset(settings(name="iconqa", path=hub.HUB_ID))
