import dataclasses
import json
from collections import Counter

import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import QuestionSet, load_questions
from fednano_flwr.data.sample import Picture, Sample
from fednano_flwr.data.shard import Shard, all_shards, read_shards
from fednano_flwr.data.shard_folder import MANIFEST, load_shard, write_shard
from fednano_flwr.data.table import Questions, in_memory
from tests.data.conftest import png, settings


def question(uid: str, group: str) -> Sample:
    return Sample(uid, "?", group=group, subject=group, choices=("a", "b"), answer=0)


QUESTIONS = QuestionSet(
    name="made",
    train=in_memory(question(f"train{index}", "abc"[index % 3]) for index in range(90)),
    test=in_memory(question(f"test{index}", "abcd"[index % 4]) for index in range(40)),
)


def shards(questions=QUESTIONS, num_partitions=4, seed=0, **changes):
    dataset = settings(**{"min_partition_size": 3, **changes})
    return list(all_shards(questions, dataset, seed, num_partitions))


@pytest.mark.parametrize("num_partitions", [1, 4])
def test_the_shards_together_are_the_dataset(num_partitions):
    parts = shards(num_partitions=num_partitions)
    assert Counter(s for part in parts for s in part.train) == Counter(QUESTIONS.train)
    assert Counter(s for part in parts for s in part.test) == Counter(QUESTIONS.test)
    assert min(len(part.train) for part in parts) >= 3


def test_a_client_is_tested_on_what_it_is_trained_on():
    for part in shards(alpha=0.1, min_partition_size=1):
        trained, tested = Counter(part.train.groups), Counter(part.test.groups)
        for group in "abc":
            assert abs(tested[group] - 10 * trained[group] / 30) < 1


def test_the_seed_decides_which_questions_a_client_has():
    one_group = QuestionSet("made", QUESTIONS.train[::3], QUESTIONS.test[::4])
    # One client: all training questions, in an order that only the seed decides.
    assert shards(one_group, 1, seed=1) == shards(one_group, 1, seed=1)
    assert shards(one_group, 1, seed=1)[0].train != shards(one_group, 1, seed=2)[0].train
    # One group: hence the same test questions in any split, in an order that the seed decides.
    assert shards(one_group, 1, seed=1)[0].test != shards(one_group, 1, seed=2)[0].test


def test_a_client_takes_its_own_questions_and_no_others(monkeypatch):
    taken = []
    select = Questions.select
    monkeypatch.setattr(
        Questions, "select", lambda self, own: taken.append(len(own)) or select(self, own)
    )
    part = all_shards(QUESTIONS, settings(min_partition_size=1), 0, 4).of_client(1)
    assert taken == [len(part.train), len(part.test)]
    assert part == all_shards(QUESTIONS, settings(min_partition_size=1), 0, 4)[1]


def test_a_client_s_own_training_questions_are_cut_and_the_test_split_is_not_touched():
    whole = shards()
    parts = shards(test_fraction=0.25)
    for part, uncut in zip(parts, whole, strict=True):
        assert sorted(part.train.uids + part.test.uids) == sorted(uncut.train.uids)
        assert len(part.test) == round(len(uncut.train) / 4)
    assert parts == shards(test_fraction=0.25)
    assert parts[0].test != shards(test_fraction=0.25, seed=1)[0].test


def test_a_partition_that_is_not_there_says_which_are():
    for partition_id in (-1, 4, 100):
        with pytest.raises(DataError, match=rf"partition-id is {partition_id}; .* 0 to 3"):
            all_shards(QUESTIONS, settings(), 0, 4).of_client(partition_id)


@pytest.mark.parametrize(("name", "train", "test"), [("iconqa", 66, 27), ("scienceqa", 520, 241)])
def test_the_real_samples_are_split_completely(sample_data, name, train, test):
    dataset = settings(name=name, path=str(sample_data / name), max_skipped=0.5)
    parts = all_shards(load_questions(dataset), dataset, seed=0, num_partitions=3)
    assert len({uid for part in parts for uid in part.train.uids}) == train
    assert len({uid for part in parts for uid in part.test.uids}) == test
    assert sum(len(part.train) + len(part.test) for part in parts) == train + test


def with_bytes(questions) -> list[Sample]:
    """The samples with the content of their pictures in place of where they lie."""
    return [
        dataclasses.replace(
            sample,
            images=tuple(Picture(data=p.read()) for p in sample.images),
            choice_images=tuple(Picture(data=p.read()) for p in sample.choice_images),
        )
        for sample in questions
    ]


def assert_same(found: Shard, expected: Shard) -> None:
    assert with_bytes(found.train) == with_bytes(expected.train)
    assert with_bytes(found.test) == with_bytes(expected.test)


@pytest.mark.parametrize("name", ["iconqa", "scienceqa"])
def test_a_written_shard_comes_back_exactly_wherever_it_is_moved(sample_data, tmp_path, name):
    dataset = settings(name=name, path=str(sample_data / name), max_skipped=0.5)
    part = read_shards(dataset, 0, 3)[1]
    write_shard(tmp_path / "written", part, {"seed": 0})
    (tmp_path / "written").rename(tmp_path / "moved")
    again = load_shard(tmp_path / "moved")
    assert_same(again, part)
    pictures = [p for s in [*again.train, *again.test] for p in s.pictures]
    assert pictures
    assert all(p.path.is_relative_to(tmp_path / "moved" / "images") for p in pictures)


def test_a_shard_of_pictures_that_a_table_holds_has_them_as_files(tmp_path):
    samples = [
        dataclasses.replace(question("1", "a"), images=(Picture(data=png(1)),)),
        dataclasses.replace(question("2", "a"), images=(Picture(data=b"no picture"),)),
        dataclasses.replace(question("3", "a"), images=(Picture(data=png(1)),)),
    ]
    part = Shard(in_memory(samples), in_memory())
    written = write_shard(tmp_path, part, {})
    assert (written["train"], written["test"], written["pictures"]) == (3, 0, 2)
    assert sorted(file.suffix for file in (tmp_path / "images").iterdir()) == ["", ".png"]
    assert_same(load_shard(tmp_path), part)
    gone = dataclasses.replace(question("4", "a"), images=(Picture(tmp_path / "gone.png"),))
    with pytest.raises(DataError, match=r"gone\.png cannot be read: No such file"):
        write_shard(tmp_path / "other", Shard(in_memory([gone]), in_memory()), {})


@pytest.fixture
def written(tmp_path):
    sample = dataclasses.replace(question("1", "a"), images=(Picture(data=png(1)),))
    write_shard(tmp_path / "client-0", Shard(in_memory([sample]), in_memory([sample])), {"seed": 7})
    return tmp_path / "client-0"


def test_a_manifest_says_what_is_in_the_folder(written):
    manifest = json.loads((written / MANIFEST).read_text())
    assert (manifest["format"], manifest["seed"]) == (5, 7)
    assert manifest["counts"] == {"train": 1, "test": 1, "pictures": 1, "sounds": 0}
    files = {str(f.relative_to(written)) for f in written.rglob("*") if f.is_file()}
    assert {*manifest["files"], MANIFEST} == files


@pytest.mark.parametrize("name", ["data/train.arrow", "data/test.arrow", "images"])
def test_a_damaged_cut_or_missing_file_is_named(written, name):
    file = written / name
    if file.is_dir():
        (file,) = file.iterdir()
    data = file.read_bytes()
    for content in (data[:-1], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="is damaged") as caught:
            load_shard(written)
        assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_shard(written)


def test_a_folder_that_is_no_shard_says_what_to_give(written, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"is not a shard: it has no manifest\.json"):
            load_shard(folder)
    manifest = json.loads((written / MANIFEST).read_text())
    for changes, says in (
        ({"kind": "x"}, "not the manifest of a shard"),
        ({"format": 99}, "has format 99"),
        ({"files": {}}, "does not list the shard's files"),
    ):
        (written / MANIFEST).write_text(json.dumps(manifest | changes))
        with pytest.raises(DataError, match=says):
            load_shard(written)
