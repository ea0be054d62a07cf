"""Which training sample goes to which client: flwr-datasets' partitioners, fixed by a seed."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError

SHORT_NAMES = {"dirichlet": "DirichletPartitioner", "iid": "IidPartitioner"}
UNUSABLE = {
    "Partitioner": "it is the base class of the others",
    "ContinuousPartitioner": "it splits by a number, and questions have none",
    "DistributionPartitioner": "it takes an array of how many samples to give to whom",
    "IdToSizeFncPartitioner": "it takes a function",
    "VerticalEvenPartitioner": "it splits columns, not samples",
    "VerticalSizePartitioner": "it splits columns, not samples",
}
"""What flwr-datasets has and the run config cannot give the arguments for."""


def deal(
    columns: Mapping[str, Sequence[str]], dataset: Dataset, num_partitions: int, seed: int
) -> list[list[int]]:
    """Deal samples to partitions with the partitioner that `dataset.partitioner` names.

    Dirichlet (after Yurochkin et al., ICML 2019) deals each group in proportions drawn from
    Dirichlet(alpha): the smaller `dataset.alpha`, the fewer partitions share a group. The draw is
    repeated up to ten times until each has `dataset.min-partition-size` samples. A partitioner
    that takes no seed is shown the samples in an order that the seed decides.

    Args:
        columns: what can be split by, `group` among them: a value a sample.

    Returns:
        For each partition the indices of its samples; no index is in two.

    Raises:
        DataError: a setting is out of its range, or the split that is asked for cannot be made.
    """
    total = len(columns["group"])
    _check_settings(total, dataset, num_partitions, seed)
    kind, arguments = _partitioner(dataset)
    own = {
        "num_partitions": num_partitions,
        "partition_by": "group",
        "seed": seed,
        "alpha": float(dataset.alpha),
        "min_partition_size": dataset.min_partition_size,
        "self_balancing": False,
        "shuffle": True,
    }
    taken = inspect.signature(kind).parameters
    order = list(range(total))
    if "seed" not in taken:
        random.Random(seed).shuffle(order)
    partitions = _load(
        kind,
        {key: value for key, value in own.items() if key in taken} | arguments,
        {name: [values[index] for index in order] for name, values in columns.items()}
        | {"index": order},
        dataset,
    )
    if len(partitions) != num_partitions:
        raise DataError(
            f"dataset.partitioner = {dataset.partitioner} makes {len(partitions)} partitions of "
            f"these {total} training questions, and there are {num_partitions} clients. Change the "
            "number of clients or dataset.partitioner-args."
        )
    smallest = min(range(num_partitions), key=lambda k: len(partitions[k]))
    if len(partitions[smallest]) < dataset.min_partition_size:
        raise DataError(
            f"dataset.partitioner = {dataset.partitioner} gives client {smallest} "
            f"{len(partitions[smallest])} of {total} training questions, and "
            f"dataset.min-partition-size = {dataset.min_partition_size}. Lower it, use fewer "
            f"clients than {num_partitions}, or change dataset.partitioner-args."
        )
    return partitions


def check_partitioner(dataset: Dataset) -> None:
    """Refuse a partitioner that is not there and arguments that it does not take.

    Raises:
        DataError: with the partitioners or arguments that there are.
    """
    if dataset.partitioner in SHORT_NAMES and not dataset.partitioner_args:
        return  # without the seconds that importing flwr-datasets takes
    kind, arguments = _partitioner(dataset)
    taken = inspect.signature(kind).parameters
    for name in arguments:
        if name not in taken:
            raise DataError(
                f"dataset.partitioner-args: {kind.__name__} takes {', '.join(taken)}; not {name}."
            )


def parse_args(text: str) -> dict[str, Any]:
    """`"num_classes_per_partition=2, partition_sizes=10;20"` as a dictionary.

    Values are whole numbers, numbers, true or false, else text; with semicolons, a list of these.

    Raises:
        DataError: not of that form.
    """
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key.isidentifier() and equals and value):
            raise DataError(
                f"dataset.partitioner-args = '{text}': must be as in "
                "num_classes_per_partition=2,class_assignment_mode=deterministic; "
                "a list as in partition_sizes=10;20"
            )
        items = [_value(item.strip()) for item in value.split(";")]
        arguments[key] = items if ";" in value else items[0]
    return arguments


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _partitioner(dataset: Dataset) -> tuple[type, dict[str, Any]]:
    """The class that `dataset.partitioner` names, and the arguments that the user gives it."""
    # Imported here: it takes seconds, and only splitting needs it.
    from flwr_datasets import partitioner as available

    name = SHORT_NAMES.get(dataset.partitioner, dataset.partitioner)
    if reason := UNUSABLE.get(name):
        raise DataError(f"dataset.partitioner = {name} cannot be used here: {reason}.")
    if name not in available.__all__:
        known = [*SHORT_NAMES, *(other for other in available.__all__ if other not in UNUSABLE)]
        raise DataError(
            f"dataset.partitioner is '{dataset.partitioner}': must be one of {', '.join(known)}."
        )
    return getattr(available, name), parse_args(dataset.partitioner_args)


def _load(
    kind: type, arguments: dict[str, Any], columns: dict[str, list[Any]], dataset: Dataset
) -> list[list[int]]:
    """The partitions that a partitioner makes, as lists of the column `index`."""
    from datasets import Dataset as Table

    try:
        # Warnings and progress of single partitioners: repeated draws, unused groups. What comes
        # of it is checked by the caller.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            partitioner = kind(**arguments)
            partitioner.dataset = Table.from_dict(columns)
            count = partitioner.num_partitions
            return [partitioner.load_partition(k)["index"][:] for k in range(count)]
    except Exception as error:  # partitioners check little: a bad argument may fail anywhere
        total = len(columns["index"])
        if kind.__name__ == SHORT_NAMES["dirichlet"] and "max number of attempts" in str(error):
            raise DataError(
                f"No draw gave each of {arguments['num_partitions']} clients the "
                f"{arguments['min_partition_size']} training questions that "
                f"dataset.min-partition-size asks for: there are {total}, and dataset.alpha = "
                f"{arguments['alpha']} makes the shares very unequal. Raise dataset.alpha, lower "
                "dataset.min-partition-size, or use fewer clients."
            ) from error
        raise DataError(
            f"dataset.partitioner = {dataset.partitioner} with dataset.partitioner-args = "
            f"'{dataset.partitioner_args}' cannot split {total} training questions: {error}"
        ) from error


def _check_settings(num_samples: int, dataset: Dataset, num_partitions: int, seed: int) -> None:
    if num_partitions < 1:
        raise DataError(f"num-partitions is {num_partitions}; at least 1 client is needed.")
    if not math.isfinite(dataset.alpha):
        raise DataError(f"dataset.alpha is {dataset.alpha}; it must be a number above 0.")
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more.")
    least = dataset.min_partition_size
    if num_samples < num_partitions * least:
        raise DataError(
            f"dataset.min-partition-size = {least} for {num_partitions} clients takes "
            f"{num_partitions * least} training questions, and there are {num_samples}; no "
            "dataset.alpha can change that. Lower dataset.min-partition-size or use fewer clients."
        )
