"""One client's own questions.

Every client computes the whole split from the seed and takes its part, so nothing about the split
has to be sent; in return, all clients must read the same dataset.
"""

from __future__ import annotations

from dataclasses import dataclass

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.partition import dirichlet_partitions, proportional_partitions
from fednano_flwr.data.sample import QuestionSet, Sample


@dataclass(frozen=True)
class Shard:
    """One client's own questions."""

    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


def shard(
    questions: QuestionSet,
    partition_id: int,
    num_partitions: int,
    alpha: float,
    seed: int,
    min_partition_size: int,
) -> Shard:
    """Client `partition_id`'s training questions, and test questions in the same proportions.

    Raises:
        DataError: no such partition, or the split that is asked for cannot be made.
    """
    train_groups = [sample.group for sample in questions.train]
    test_groups = [sample.group for sample in questions.test]
    train = dirichlet_partitions(train_groups, num_partitions, alpha, seed, min_partition_size)
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"partition-id is {partition_id}; with num-partitions {num_partitions} it can be "
            f"0 to {num_partitions - 1}."
        )
    test = proportional_partitions(test_groups, train_groups, train, seed)
    return Shard(
        train=tuple(questions.train[index] for index in train[partition_id]),
        test=tuple(questions.test[index] for index in test[partition_id]),
    )
