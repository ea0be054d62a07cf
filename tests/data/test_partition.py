import random
import time
import warnings

import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.partition import check_partitioner, parse_args
from fednano_flwr.data.partition import deal as deal_samples
from fednano_flwr.data.proportions import (
    cut,
    group_table,
    proportional_partitions,
)
from tests.data.conftest import settings

GROUPS = [random.Random(index).choice("abcdefgh") for index in range(600)]


def deal(num_partitions=5, seed=3, groups=GROUPS, **changes):
    columns = {
        "group": groups,
        "subject": ["early" if group in "abc" else "late" for group in groups],
    }
    return deal_samples(columns, settings(**changes), num_partitions, seed)


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
    partitions = deal(num_partitions, alpha=alpha)
    assert len(partitions) == num_partitions
    assert sorted(index for part in partitions for index in part) == list(range(len(GROUPS)))
    assert min(map(len, partitions)) >= 5


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


@pytest.mark.parametrize(("size", "clients"), [(1, 2), (2, 4), (6, 4), (3, 20)])
@pytest.mark.parametrize("alpha", [10.0, 1e6, 1e300])
def test_what_shares_of_small_groups_leave_over_is_dealt_to_all_clients(size, clients, alpha):
    groups = [f"topic {index // size}" for index in range(240)]
    sizes = [len(part) for part in deal(clients, groups=groups, alpha=alpha, min_partition_size=1)]
    assert sum(sizes) == 240
    # Each sample to any client with equal chance has a standard deviation of at most this.
    assert max(abs(got - 240 / clients) for got in sizes) < 3.5 * (240 / clients) ** 0.5


@pytest.mark.parametrize(
    ("alpha", "least", "helps"),
    [(0.01, 50, True), (0.01, 60, False), (1e6, 60, False)],
)
def test_advice_names_what_helps_where_no_draw_gives_each_client_enough(alpha, least, helps):
    """Groups of 6 that 4 clients share: 60 questions each is what no draw gives."""
    groups = [f"topic {index // 6}" for index in range(240)]

    def dealt(**changes):
        return deal(4, **{"groups": groups, "alpha": alpha, "min_partition_size": least, **changes})

    with pytest.raises(DataError, match=r"dataset\.min-partition-size.* 240") as caught:
        dealt()
    said = str(caught.value)
    assert ("Raise dataset.alpha" in said) == helps
    assert ("no dataset.alpha" in said) != helps
    assert len(dealt(min_partition_size=1 if alpha < 1 else 40)) == 4
    if helps:
        assert len(dealt(alpha=1e6)) == 4
    else:
        assert all(word in said for word in ("40 groups", "6", "partition_by=subject", "iid"))
        assert len(dealt(partitioner="iid")) == 4


def test_dirichlet_takes_an_alpha_a_client_and_balances_itself():
    few, many = deal(2, partitioner_args="alpha=1;20", min_partition_size=1)
    assert len(few) < 60 < len(many)
    assert min(map(len, deal(alpha=0.001, partitioner_args="self_balancing=true"))) > 60


@pytest.mark.parametrize(
    ("name", "args", "sizes"),
    [
        ("iid", "", [200, 200, 200]),
        ("IidPartitioner", "", [200, 200, 200]),
        ("LinearPartitioner", "", [100, 200, 300]),
        ("SizePartitioner", "partition_sizes=100;50;450", [100, 50, 450]),
        ("SizePartitioner", "partition_sizes = 100; 50; 20", [100, 50, 20]),
    ],
)
def test_another_partitioner_is_taken_by_name_and_shown_samples_in_the_seeds_order(
    name, args, sizes
):
    def deal_with(seed):
        return deal(3, seed, partitioner=name, partitioner_args=args)

    partitions = deal_with(3)
    assert list(map(len, partitions)) == sizes
    assert len({index for part in partitions for index in part}) == sum(sizes)
    assert len({GROUPS[index] for index in partitions[0]}) == 8, "all groups in each"
    assert deal_with(3) == partitions
    assert deal_with(4) != partitions


def test_arguments_reach_the_partitioner():
    partitions = deal(
        8, partitioner="PathologicalPartitioner", partitioner_args="num_classes_per_partition=2"
    )
    assert [len({GROUPS[index] for index in part}) for part in partitions] == [2] * 8
    by_subject = deal(
        2, partitioner="NaturalIdPartitioner", partitioner_args="partition_by=subject"
    )
    assert {frozenset(GROUPS[index] for index in part) for part in by_subject} == {
        frozenset("abc"),
        frozenset("defgh"),
    }


def test_an_argument_of_the_users_wins_over_the_config():
    assert deal(seed=3) == deal(seed=3, partitioner="DirichletPartitioner")
    assert deal(seed=3, partitioner_args="seed=4") == deal(seed=5, partitioner_args="seed=4")
    assert deal(seed=3, partitioner_args="seed=4") != deal(seed=3)
    assert deal(partitioner_args="alpha=0.2") == deal(alpha=0.2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_partitions": 0}, "num-partitions is 0"),
        ({"groups": []}, "there are 0"),
        (
            {"partitioner": "NaturalIdPartitioner"},
            r"makes 8 partitions of these 600 .* 5 clients.*"
            r"each value of group: a, b, c and 5 more\. Use 8 clients",
        ),
        (
            {
                "partitioner": "SizePartitioner",
                "partitioner_args": "partition_sizes=1;300;99;99;101",
            },
            r"gives client 0 1 of 600 .*min-partition-size = 5",
        ),
        (
            {
                "partitioner": "PathologicalPartitioner",
                "partitioner_args": "num_classes_per_partition=9",
            },
            r"PathologicalPartitioner with .*num_classes_per_partition=9.*classes.*=8",
        ),
        ({"partitioner_args": "alpha=1;2"}, "2 values for 5"),
        ({"partitioner_args": "alpha=0"}, "alpha = 0"),
        ({"partitioner_args": "partition_by=topic"}, "topic"),
        ({"partitioner_args": "self_balancing=no"}, "self_balancing = no: must be true or false"),
        ({"partitioner_args": "shuffle=1"}, "shuffle = 1: must be true or false"),
        ({"partitioner_args": "alpha=true"}, "alpha = True: must be a finite number"),
        ({"partitioner_args": "alpha=1e400"}, "alpha = inf: must be a finite number"),
        ({"partitioner_args": "alpha=1e308"}, "must be a finite number"),
        ({"partitioner_args": "seed=true"}, "seed = True: must be a whole number"),
        ({"partitioner_args": "min_partition_size=1.5"}, "= 1.5: must be a whole number"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_with_the_numbers(changes, says):
    with pytest.raises(DataError, match=says):
        deal(**changes)


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("dirichlett", "", "must be one of dirichlet, iid, DirichletPartitioner"),
        ("VerticalEvenPartitioner", "", "it splits columns, not samples"),
        ("DistributionPartitioner", "", "it takes an array"),
        ("iid", "alfa=1", "IidPartitioner takes num_partitions; not alfa"),
        ("dirichlet", "alpha", "must be as in num_classes_per_partition=2"),
        ("dirichlet", "a b=3", "must be as in"),
    ],
)
def test_a_partitioner_or_argument_that_cannot_be_used_is_refused(name, args, says):
    with pytest.raises(DataError, match=says):
        check_partitioner(settings(partitioner=name, partitioner_args=args))


def test_arguments_are_numbers_truth_values_text_and_lists():
    assert parse_args("a=1, b=0.5,c=true,d=first-deterministic,e=1;2.5;x,") == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "first-deterministic",
        "e": [1, 2.5, "x"],
    }
    assert parse_args(" ") == {}


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
    test = proportional_partitions(["new"] * 7, ["a"] * 3, [[0], [1], [2]], seed=0)
    assert sorted(map(len, test)) == [2, 2, 3]
    undealt = proportional_partitions(["b"] * 4, ["a", "a", "b"], [[0], [1]], seed=0)
    assert sorted(map(len, undealt)) == [2, 2]
    assert proportional_partitions([], ["a", "b"], [[0], [1]], seed=0) == [[], []]


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


@pytest.mark.parametrize(
    ("total", "fraction", "tested"),
    [(10, 0.2, 2), (9, 0.5, 4), (3, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0), (0, 0.5, 0)],
)
def test_a_cut_is_rounded_and_leaves_something_to_train_on(total, fraction, tested):
    train, test = cut(range(100, 100 + total), fraction, 0, 0)
    assert len(test) == tested
    assert sorted(train + test) == list(range(100, 100 + total))


def test_the_seed_and_the_client_decide_the_cut():
    def tested(seed, client):
        return cut(range(1000), 0.3, seed, client)[1]

    assert tested(1, 2) == tested(1, 2)
    assert tested(1, 2) != tested(2, 2)
    assert tested(1, 2) != tested(1, 3)
    assert tested(1, 12) != tested(11, 2)
