import random
import time
import warnings

import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.partition import (
    dirichlet_partitions,
    group_table,
    proportional_partitions,
)

GROUPS = [random.Random(index).choice("abcdefgh") for index in range(600)]


def deal(num_partitions=5, alpha=0.5, seed=3, min_partition_size=5, groups=GROUPS):
    return dirichlet_partitions(groups, num_partitions, alpha, seed, min_partition_size)


def skew(partitions):
    """Mean total variation distance between a partition's mix of groups and the whole's: 0 to 1."""
    table = group_table(GROUPS, partitions)
    distances = []
    for k, partition in enumerate(partitions):
        distances.append(
            sum(
                abs(counts[k] / len(partition) - sum(counts) / len(GROUPS))
                for counts in table.values()
            )
            / 2
        )
    return sum(distances) / len(distances)


@pytest.mark.parametrize("num_partitions", [1, 2, 5, 20])
@pytest.mark.parametrize("alpha", [1, 0.5])
def test_each_sample_is_in_exactly_one_partition(num_partitions, alpha):
    partitions = deal(num_partitions, alpha)
    assert len(partitions) == num_partitions
    assert sorted(index for part in partitions for index in part) == list(range(len(GROUPS)))
    assert min(map(len, partitions)) >= 5


def test_the_seed_and_nothing_else_decides():
    assert deal(seed=3) == deal(seed=3)
    assert deal(seed=3) != deal(seed=4)


def test_a_partition_is_shuffled_so_that_its_first_samples_are_of_all_groups():
    partition = deal(num_partitions=1)[0]
    assert partition != sorted(partition)
    assert len({GROUPS[index] for index in partition[:60]}) == 8


def test_skew_grows_as_alpha_falls():
    def mean_skew(alpha):
        return sum(skew(deal(alpha=alpha, seed=seed)) for seed in range(5)) / 5

    skews = [mean_skew(alpha) for alpha in (1000, 10, 1, 0.2)]
    assert skews == sorted(skews)
    assert skews[0] < 0.1
    assert skews[-1] > 0.4


def test_more_samples_a_client_than_there_are_fails_at_once():
    start = time.perf_counter()
    with warnings.catch_warnings(), pytest.raises(DataError) as caught:
        warnings.simplefilter("error")
        deal(num_partitions=7, min_partition_size=100)
    assert time.perf_counter() - start < 0.1
    for part in ("dataset.min-partition-size = 100", "7 clients", "700", "600", "dataset.alpha"):
        assert part in str(caught.value)


def test_a_size_that_no_draw_reaches_names_keys_samples_and_clients():
    with warnings.catch_warnings(), pytest.raises(DataError) as caught:
        warnings.simplefilter("error")
        deal(num_partitions=10, alpha=0.01, min_partition_size=50)
    for part in ("dataset.alpha = 0.01", "dataset.min-partition-size", "600", "10 clients", "50"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_partitions": 0}, "num-partitions is 0"),
        ({"alpha": 0}, "dataset.alpha is 0"),
        ({"alpha": -1.0}, "dataset.alpha is -1.0"),
        ({"alpha": float("nan")}, "dataset.alpha is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"min_partition_size": 0}, "dataset.min-partition-size is 0"),
        ({"groups": []}, "there are 0"),
    ],
)
def test_a_setting_out_of_range_is_named(change, key):
    with pytest.raises(DataError, match=key):
        deal(**change)


def test_partitioning_prints_nothing(capfd):
    deal()
    assert capfd.readouterr() == ("", "")


def test_group_table_counts_by_hand():
    assert group_table(["b", "a", "b", "b"], [[0, 1], [], [3, 2]]) == {
        "a": [1, 0, 0],
        "b": [1, 0, 2],
    }


def test_test_samples_follow_the_training_samples_by_hand():
    train_groups = ["a"] * 6 + ["b"] * 4
    train = [[0, 1, 2, 3, 6], [4, 5, 7, 8, 9]]  # a: 4 and 2, b: 1 and 3
    test_groups = ["a"] * 3 + ["b"] * 8
    test = proportional_partitions(test_groups, train_groups, train, seed=0)
    assert group_table(test_groups, test) == {"a": [2, 1], "b": [2, 6]}
    assert sorted(test[0] + test[1]) == list(range(11))


def test_remainders_go_to_the_largest_then_to_who_has_fewest():
    train_groups = ["a"] * 4 + ["b", "b"] + ["c", "c"]
    train = [[0, 1, 2, 4, 6], [3, 5, 7]]  # a: 3 and 1; b and c: 1 and 1
    test_groups = ["a", "b", "c"]
    table = group_table(test_groups, proportional_partitions(test_groups, train_groups, train, 0))
    assert table == {"a": [1, 0], "b": [0, 1], "c": [1, 0]}


def test_a_group_without_training_samples_is_dealt_evenly():
    test_groups = ["new"] * 7
    test = proportional_partitions(test_groups, ["a"] * 3, [[0], [1], [2]], seed=0)
    assert sorted(map(len, test)) == [2, 2, 3]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 100.0])
def test_each_test_sample_is_in_one_partition_within_one_of_its_share(alpha):
    test_groups = [random.Random(f"t{index}").choice("abcdefghij") for index in range(333)]
    train = deal(alpha=alpha)
    test = proportional_partitions(test_groups, GROUPS, train, seed=3)
    assert sorted(index for part in test for index in part) == list(range(333))
    trained, tested = group_table(GROUPS, train), group_table(test_groups, test)
    for group, counts in tested.items():
        weights = trained.get(group, [1] * 5)
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - sum(counts) * weight / sum(weights)) < 1


def test_which_test_samples_a_partition_gets_depends_on_the_seed_alone():
    def split(seed):
        return proportional_partitions(["a"] * 50, ["a"] * 4, [[0, 1], [2, 3]], seed)

    assert split(1) == split(1)
    assert split(1) != split(2)
    assert split(1)[0] != sorted(split(1)[0])


def test_no_test_samples_at_all_is_no_error():
    assert proportional_partitions([], ["a", "b"], [[0], [1]], seed=0) == [[], []]
