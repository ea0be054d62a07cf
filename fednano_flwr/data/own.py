"""What a client has in its node config's `data-path`: a shard, or a file of rows of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.proportions import cut
from fednano_flwr.data.shard import Shard
from fednano_flwr.data.shard_folder import load_shard, read_manifest


def is_file_of_rows(data_path: str) -> bool:
    """Whether it is one file, and no folder of a shard."""
    return Path(data_path).expanduser().is_file()


def own_shard(
    data_path: str, dataset: Dataset, seed: int, partition: int
) -> tuple[Shard, Counter[str]]:
    """A client's own questions, and how many were left out for which reason.

    A file of rows is read as `dataset.name` reads it, and cut by `dataset.test-fraction`.

    Raises:
        DataError: there is neither, it is damaged, or too many of its questions cannot be used.
    """
    path = Path(data_path).expanduser().absolute()
    if not is_file_of_rows(data_path):
        return load_shard(path), Counter(read_manifest(path).get("skipped", {}))
    try:
        found = load_questions(replace(dataset, path=str(path), revision=""))
    except DataError as error:
        raise DataError(f"the node config's data-path = {data_path!r}: {error}") from error
    if not dataset.test_fraction:
        return Shard(found.train, found.test), found.skipped
    train, test = cut(range(len(found.train)), dataset.test_fraction, seed, partition)
    return Shard(found.train.select(train), found.train.select(test)), found.skipped
