"""One client's own questions: computed from the seed, or read from a folder of its own.

Computed, every client works out the whole split and takes its part, so nothing about the split has
to be sent; in return, all clients must read the same dataset. A folder (`fednano partition`) holds
one client's questions and pictures and nothing of the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.manifest import TEST_FILE, TRAIN_FILE, check_files, read_manifest
from fednano_flwr.data.partition import deal
from fednano_flwr.data.proportions import cut, proportional_partitions
from fednano_flwr.data.sample import Questions, QuestionSet
from fednano_flwr.data.table import read_table


@dataclass(frozen=True)
class Shard:
    """One client's own questions."""

    train: Questions
    test: Questions


def shard(
    questions: QuestionSet, dataset: Dataset, seed: int, partition_id: int, num_partitions: int
) -> Shard:
    """Client `partition_id`'s training and test questions.

    Raises:
        DataError: no such partition, or the split that is asked for cannot be made.
    """
    return one_of(all_shards(questions, dataset, seed, num_partitions), partition_id)


def one_of(shards: Sequence[Shard], partition_id: int) -> Shard:
    """Client `partition_id`'s shard.

    Raises:
        DataError: no such partition.
    """
    if not 0 <= partition_id < len(shards):
        raise DataError(
            f"partition-id is {partition_id}; with num-partitions {len(shards)} it can be "
            f"0 to {len(shards) - 1}."
        )
    return shards[partition_id]


def all_shards(questions: QuestionSet, dataset: Dataset, seed: int, num_partitions: int) -> Shards:
    """Every client's shard, each made when it is asked for.

    With `dataset.test-fraction` = 0, test questions come from the dataset's test split in the
    proportions of each client's training questions; above 0, from its own training questions.

    Raises:
        DataError: the split that is asked for cannot be made.
    """
    columns = {"group": questions.train.groups, "subject": questions.train.subjects}
    train = deal(columns, dataset, num_partitions, seed)
    if dataset.test_fraction:
        cuts = [cut(part, dataset.test_fraction, seed, k) for k, part in enumerate(train)]
        return Shards(questions.train, questions.train, cuts)
    test = proportional_partitions(questions.test.groups, columns["group"], train, seed)
    return Shards(questions.train, questions.test, list(zip(train, test, strict=True)))


class Shards(Sequence[Shard]):
    """Shards by their questions' places: taking those of all clients to get one takes long."""

    def __init__(
        self, train: Questions, test: Questions, places: Sequence[tuple[list[int], list[int]]]
    ) -> None:
        self._train, self._test, self._places = train, test, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        train, test = self._places[index]
        return Shard(self._train.select(train), self._test.select(test))

    def all_train(self) -> Questions:
        """All clients' training questions, in the data set's order."""
        return self._train.select(sorted(place for train, _ in self._places for place in train))


def load_shard(folder: Path) -> Shard:
    """The shard in a folder that `fednano partition` wrote; each file is checked by the manifest.

    Raises:
        DataError: the folder is not a shard, is incomplete or is damaged.
    """
    folder = folder.expanduser().absolute()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return Shard(read_table(folder / TRAIN_FILE, folder), read_table(folder / TEST_FILE, folder))
