import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fednano_flwr.data import cache as tables
from fednano_flwr.data.cache import read_split
from fednano_flwr.data.defects import MISSING_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Sample
from fednano_flwr.data.sources import Found
from fednano_flwr.data.sources.scienceqa import ScienceQA


@pytest.fixture
def found(write_scienceqa, write_picture) -> Found:
    problems = {"1": {}, "2": {"image": "image.png"}, "3": {"image": "image.png"}}
    path = write_scienceqa(problems, train=["1", "2", "3"], test=["1"])
    write_picture(path / "images" / "train" / "2" / "image.png")
    return Found("scienceqa", ScienceQA(path), str(path))


def count_readings(monkeypatch) -> list[str]:
    read, seen = ScienceQA.read, []
    monkeypatch.setattr(
        ScienceQA, "read", lambda self, split: seen.append(split) or read(self, split)
    )
    return seen


def test_a_split_is_read_once_and_then_taken_from_the_cache(found, monkeypatch, cache):
    seen = count_readings(monkeypatch)
    first = read_split(found, "train")
    again = read_split(found, "train")
    read_split(found, "test")
    assert seen == ["train", "test"]
    assert again.questions == first.questions
    assert again.skipped == first.skipped == {MISSING_PICTURE: ["3"]}
    assert len(list((cache / "questions").iterdir())) == 2


def change_text(path: Path) -> None:
    file = path / "problems.json"
    file.write_text(file.read_text().replace("Which", "What!"))


def change_text_and_keep_the_time(path: Path) -> None:
    before = (path / "problems.json").stat()
    change_text(path)
    os.utime(path / "problems.json", ns=(before.st_atime_ns, before.st_mtime_ns))


def change_time_alone(path: Path) -> None:
    os.utime(path / "problems.json", ns=(1, 1))


def repair(path: Path) -> None:
    (path / "images" / "train" / "3").mkdir()
    picture = path / "images" / "train" / "2" / "image.png"
    (path / "images" / "train" / "3" / "image.png").write_bytes(picture.read_bytes())


def lose(path: Path) -> None:
    (path / "images" / "train" / "2" / "image.png").unlink()


@pytest.mark.parametrize(
    "change",
    [change_text, change_text_and_keep_the_time, change_time_alone, repair, lose],
)
def test_a_changed_folder_is_read_anew(found, monkeypatch, change):
    read_split(found, "train")
    seen = count_readings(monkeypatch)
    change(found.reader.root)
    fresh = read_split(found, "train")
    assert seen == ["train"]
    kept = {"repair": 3, "lose": 1}.get(change.__name__, 2)
    assert len(fresh.questions) == kept


def test_another_version_of_the_reader_reads_anew(found, monkeypatch):
    read_split(found, "train")
    seen = count_readings(monkeypatch)
    monkeypatch.setattr(tables, "FORMAT", tables.FORMAT + 1)
    read_split(found, "train")
    assert seen == ["train"]


def test_several_that_start_at_once_all_get_it_and_leave_nothing_half_written(found, cache):
    with ThreadPoolExecutor(4) as pool:
        splits = list(pool.map(lambda _: read_split(found, "train"), range(8)))
    assert all(split.questions == splits[0].questions for split in splits)
    assert len(list((cache / "questions").iterdir())) == 1


def test_a_reading_that_fails_leaves_nothing_behind(found, monkeypatch, cache):
    def break_off(self, split):
        raise DataError("broken")

    monkeypatch.setattr(ScienceQA, "read", break_off)
    with pytest.raises(DataError, match="broken"):
        read_split(found, "train")
    assert list((cache / "questions").iterdir()) == []


def test_a_cache_that_cannot_be_written_says_where_and_what_to_do(found, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDNANO_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written to .*FEDNANO_CACHE"):
        read_split(found, "train")


def test_reading_quickly_prints_nothing_and_slowly_its_progress(found, monkeypatch, capfd):
    read_split(found, "train")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(tables, "SILENT_SECONDS", 0)
    read_split(found, "test")
    out, err = capfd.readouterr()
    assert out == "" and "reading scienceqa test" in err


def test_no_question_at_all_is_an_empty_table(write_scienceqa):
    path = write_scienceqa({}, train=[], test=[])
    questions = read_split(Found("scienceqa", ScienceQA(path), str(path)), "train").questions
    assert (list(questions), questions.groups, questions[:]) == ([], [], questions)
    assert not questions


def test_questions_are_a_sequence_that_copies_cheaply(found):
    import copy
    import pickle

    questions = read_split(found, "train").questions
    assert [sample.uid for sample in questions] == questions.uids == ["1", "2"]
    assert isinstance(questions[-1], Sample) and questions[-1].uid == "2"
    assert questions[::-1].uids == ["2", "1"]
    chosen = questions.select([1, 0, 1])
    assert (chosen.uids, chosen.groups, len(chosen)) == (["2", "1", "2"], ["physics"] * 3, 3)
    assert chosen.subjects == ["natural science"] * 3
    with pytest.raises(IndexError):
        questions[2]
    for other in (pickle.loads(pickle.dumps(chosen)), copy.deepcopy(chosen)):
        assert other == chosen and other != questions
    assert len(pickle.dumps(questions)) < 10_000
