"""Each client's own questions, computed from the seed.

Every client works out the whole split and takes its part, so nothing about the split has to be
sent; in return, all clients must read the same data set. `shard_folder` is the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import QuestionSet, load_questions
from fednano_flwr.data.partition import deal
from fednano_flwr.data.proportions import cut, proportional_partitions
from fednano_flwr.data.table import Questions


@dataclass(frozen=True)
class Shard:
    """One client's own questions."""

    train: Questions
    test: Questions


class Shards(Sequence[Shard]):
    """Every client's shard, each made when it is asked for: making all to get one takes long.

    Args:
        questions: the data set.
        places: each client's training and test questions, as indices.
        test: what the test questions are taken from.
    """

    def __init__(
        self,
        questions: QuestionSet,
        places: Sequence[tuple[list[int], list[int]]],
        test: Questions,
    ) -> None:
        self.questions, self._places, self._test = questions, places, test

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        train, test = self._places[index]
        return Shard(self.questions.train.select(train), self._test.select(test))

    def of_client(self, partition_id: int) -> Shard:
        """One client's shard.

        Raises:
            DataError: no such partition.
        """
        if not 0 <= partition_id < len(self):
            raise DataError(
                f"partition-id is {partition_id}; with num-partitions {len(self)} it can be "
                f"0 to {len(self) - 1}."
            )
        return self[partition_id]

    def all_train(self) -> Questions:
        """All clients' training questions, in the data set's order."""
        places = sorted(place for train, _ in self._places for place in train)
        return self.questions.train.select(places)


@lru_cache(maxsize=1)
def read_shards(dataset: Dataset, seed: int, num_partitions: int) -> Shards:
    """Read the data set and deal it; both once a process for the same arguments.

    Raises:
        DataError, ResourceError: it cannot be read, or the split asked for cannot be made.
    """
    return all_shards(_read_once(dataset), dataset, seed, num_partitions)


@lru_cache(maxsize=1)  # another seed deals the same questions
def _read_once(dataset: Dataset) -> QuestionSet:
    return load_questions(dataset)


def all_shards(questions: QuestionSet, dataset: Dataset, seed: int, num_partitions: int) -> Shards:
    """Every client's shard.

    With `dataset.test-fraction` = 0, test questions come from the data set's test split in the
    proportions of each client's training questions; above 0, from its own training questions.

    Raises:
        DataError: the split that is asked for cannot be made.
    """
    columns = {"group": questions.train.groups, "subject": questions.train.subjects}
    train = deal(columns, dataset, num_partitions, seed)
    if dataset.test_fraction:
        cuts = [cut(part, dataset.test_fraction, seed, k) for k, part in enumerate(train)]
        return Shards(questions, cuts, questions.train)
    test = proportional_partitions(questions.test.groups, columns["group"], train, seed)
    return Shards(questions, list(zip(train, test, strict=True)), questions.test)
