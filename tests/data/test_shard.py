from collections import Counter

import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.registry import load_questions
from fednano_flwr.data.sample import QuestionSet, Sample
from fednano_flwr.data.shard import shard


def question(uid: str, group: str) -> Sample:
    return Sample(uid=uid, question="?", choices=("a", "b"), answer=0, group=group)


QUESTIONS = QuestionSet(
    name="made",
    train=tuple(question(f"train{index}", "abc"[index % 3]) for index in range(90)),
    test=tuple(question(f"test{index}", "abcd"[index % 4]) for index in range(40)),
)


def shards(questions=QUESTIONS, num_partitions=4, alpha=0.5, seed=0, min_partition_size=3):
    return [
        shard(questions, k, num_partitions, alpha, seed, min_partition_size)
        for k in range(num_partitions)
    ]


@pytest.mark.parametrize("num_partitions", [1, 4])
def test_the_shards_together_are_the_dataset(num_partitions):
    parts = shards(num_partitions=num_partitions)
    assert Counter(s for part in parts for s in part.train) == Counter(QUESTIONS.train)
    assert Counter(s for part in parts for s in part.test) == Counter(QUESTIONS.test)
    assert min(len(part.train) for part in parts) >= 3


def test_a_client_is_tested_on_what_it_is_trained_on():
    for part in shards(alpha=0.1, min_partition_size=1):
        trained = Counter(sample.group for sample in part.train)
        tested = Counter(sample.group for sample in part.test)
        for group in "abc":
            assert abs(tested[group] - 10 * trained[group] / 30) < 1


def test_the_seed_decides_which_questions_a_client_has():
    one_group = QuestionSet("made", QUESTIONS.train[::3], QUESTIONS.test[::4])
    # One client: all training questions, in an order that only the seed decides.
    assert shards(one_group, 1, seed=1) == shards(one_group, 1, seed=1)
    assert shards(one_group, 1, seed=1)[0].train != shards(one_group, 1, seed=2)[0].train
    # One group: hence the same test questions in any split, in an order that the seed decides.
    assert shards(one_group, 1, seed=1)[0].test != shards(one_group, 1, seed=2)[0].test


@pytest.mark.parametrize("partition_id", [-1, 4, 100])
def test_a_partition_that_is_not_there_says_which_are(partition_id):
    with pytest.raises(DataError, match=rf"partition-id is {partition_id}; .* 0 to 3"):
        shard(QUESTIONS, partition_id, 4, 0.5, 0, 3)


def test_no_partitions_says_so():
    with pytest.raises(DataError, match="num-partitions is 0"):
        shard(QUESTIONS, 0, 0, 0.5, 0, 3)


@pytest.mark.parametrize(("name", "train", "test"), [("iconqa", 22, 9), ("scienceqa", 520, 241)])
def test_the_real_samples_are_split_completely(sample_data, name, train, test):
    questions = load_questions(name, sample_data / name)
    parts = shards(questions, num_partitions=3, min_partition_size=2)
    assert len({s.uid for part in parts for s in part.train}) == train
    assert len({s.uid for part in parts for s in part.test}) == test
    assert sum(len(part.train) + len(part.test) for part in parts) == train + test
