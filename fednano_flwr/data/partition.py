"""Which training sample goes to which client: by a partitioner that a seed fixes."""

from __future__ import annotations

import contextlib
import inspect
import io
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednano_flwr.base.reasons import first_few
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.proportions import deal_out, indices_by_group, largest_remainder

SHORT_NAMES = {"dirichlet": "DirichletPartitioner", "iid": "IidPartitioner"}
DRAWS = 11
EVEN = 1e6
"""An alpha at which all clients have the same share of each group, up to a question."""
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

    A partitioner that takes no seed is shown the samples in an order that the seed decides.

    Args:
        columns: what can be split by, `group` among them: a value a sample.

    Returns:
        For each partition the indices of its samples; no index is in two.

    Raises:
        DataError: a setting is out of its range, or the split that is asked for cannot be made.
    """
    total, least = len(columns["group"]), dataset.min_partition_size
    if num_partitions < 1:
        raise DataError(f"num-partitions is {num_partitions}; at least 1 client is needed.")
    if total < num_partitions * least:
        raise DataError(
            f"dataset.min-partition-size = {least} for {num_partitions} clients takes "
            f"{num_partitions * least} training questions, and there are {total}; no "
            "dataset.alpha can change that. Lower dataset.min-partition-size or use fewer clients."
        )
    kind, arguments = _partitioner(dataset)
    seed = derive_seed(Purpose.PARTITIONS, seed)
    own = {
        "num_partitions": num_partitions,
        "partition_by": "group",
        "seed": seed,
        "alpha": float(dataset.alpha),
        "min_partition_size": least,
        "self_balancing": False,
        "shuffle": True,
    }
    taken = inspect.signature(kind).parameters
    order = list(range(total))
    if "seed" not in taken:
        random.Random(seed).shuffle(order)
    given: dict[str, Any] = {key: value for key, value in own.items() if key in taken} | arguments
    shown = {name: [values[index] for index in order] for name, values in columns.items()}
    name = dataset.partitioner
    try:
        partitions = (
            kind(**given).deal(shown)
            if kind is Dirichlet
            else _load(kind, given, {**shown, "index": order})
        )
    except DataError:
        raise
    except Exception as error:  # partitioners check little: a bad argument may fail anywhere
        raise DataError(
            f"dataset.partitioner = {name} with dataset.partitioner-args = "
            f"'{dataset.partitioner_args}' cannot split {total} training questions: {error}"
        ) from error
    if len(partitions) != num_partitions:
        raise DataError(
            f"dataset.partitioner = {name} makes {len(partitions)} partitions of these {total} "
            f"training questions, and there are {num_partitions} clients. "
            + _one_each(name, columns, given, len(partitions))
        )
    smallest = min(range(num_partitions), key=lambda k: len(partitions[k]))
    if len(partitions[smallest]) < least:
        raise DataError(
            f"dataset.partitioner = {name} gives client {smallest} {len(partitions[smallest])} of "
            f"{total} training questions, and dataset.min-partition-size = "
            f"{least}. Lower it, use fewer clients than {num_partitions}, or "
            "change dataset.partitioner-args."
        )
    return partitions


def _one_each(
    name: str, columns: Mapping[str, Sequence[str]], given: Mapping[str, Any], count: int
) -> str:
    """What to do where a partitioner makes another number of partitions than there are clients."""
    if name != "NaturalIdPartitioner":
        return "Change the number of clients or dataset.partitioner-args."
    by = given["partition_by"]
    return (
        f"It makes one of each value of {by}: {first_few(sorted(set(columns[by])))}. Use {count} "
        "clients, or another column (dataset.group, dataset.partitioner-args)."
    )


def check_partitioner(dataset: Dataset) -> None:
    """Refuse a partitioner that is not there and arguments that it does not take.

    Raises:
        DataError: with the partitioners or arguments that there are.
    """
    if dataset.partitioner == "iid" and not dataset.partitioner_args:
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
    name = SHORT_NAMES.get(dataset.partitioner, dataset.partitioner)
    if name == SHORT_NAMES["dirichlet"]:
        return Dirichlet, parse_args(dataset.partitioner_args)
    # Imported here: it takes seconds.
    from flwr_datasets import partitioner as available

    if reason := UNUSABLE.get(name):
        raise DataError(f"dataset.partitioner = {name} cannot be used here: {reason}.")
    if name not in available.__all__:
        known = [*SHORT_NAMES, *(other for other in available.__all__ if other not in UNUSABLE)]
        raise DataError(
            f"dataset.partitioner is '{dataset.partitioner}': must be one of {', '.join(known)}."
        )
    return getattr(available, name), parse_args(dataset.partitioner_args)


def _load(kind: type, arguments: dict[str, Any], columns: dict[str, list[Any]]) -> list[list[int]]:
    """The partitions that a partitioner makes, as lists of the column `index`."""
    from datasets import Dataset as Table

    # Warnings and progress of single partitioners: repeated draws, unused groups. What comes of it
    # is checked by the caller.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        partitioner = kind(**arguments)
        partitioner.dataset = Table.from_dict(columns)
        count = partitioner.num_partitions
        return [partitioner.load_partition(k)["index"][:] for k in range(count)]


@dataclass(frozen=True)
class Dirichlet:
    """Each group in proportions drawn from Dirichlet(alpha), after Yurochkin et al. (ICML 2019).

    The smaller alpha, the fewer partitions share a group. It takes the arguments of flwr-datasets'
    DirichletPartitioner, which rounds shares down and gives what is left of every group to the last
    partition: of groups of few samples nearly all. Here that goes to the largest remainders.
    """

    num_partitions: int
    partition_by: str
    alpha: float | list[float]
    min_partition_size: int
    self_balancing: bool
    shuffle: bool
    seed: int

    def deal(self, columns: Mapping[str, Sequence[str]]) -> list[list[int]]:
        """The indices of each partition's samples.

        Raises:
            DataError: no draw of DRAWS gave each partition `min_partition_size` samples.
        """
        if isinstance(self.alpha, list) and len(self.alpha) != self.num_partitions:
            raise ValueError(
                f"alpha has {len(self.alpha)} values for {self.num_partitions} clients"
            )
        alphas = np.broadcast_to(np.array(self.alpha), self.num_partitions)
        number = alphas.dtype.kind in "iuf"  # not true, false or text
        if not number or not np.all(alphas > 0) or not np.isfinite(alphas.astype(float).sum()):
            raise ValueError(f"alpha = {self.alpha}: must be a finite number above 0")
        for kind, what, names in (
            (bool, "true or false", ("self_balancing", "shuffle")),
            (int, "a whole number", ("min_partition_size", "seed")),
        ):
            for name in names:
                if type(getattr(self, name)) is not kind:
                    raise ValueError(f"{name} = {getattr(self, name)}: must be {what}")
        groups = indices_by_group(columns[self.partition_by])
        found = self._drawn(groups, self.alpha)
        if found is None:
            raise DataError(self._advice(groups))
        return found

    def _drawn(
        self, groups: Mapping[str, list[int]], alpha: float | list[float]
    ) -> list[list[int]] | None:
        """The first draw that gives each partition enough, or None."""
        generator = np.random.default_rng(self.seed)
        alphas = np.broadcast_to(np.array(alpha, dtype=float), self.num_partitions)
        average = sum(map(len, groups.values())) / self.num_partitions
        for _ in range(DRAWS):
            partitions: list[list[int]] = [[] for _ in range(self.num_partitions)]
            for group in sorted(groups):
                sizes = [len(partition) for partition in partitions]
                shares = generator.dirichlet(alphas)
                if self.self_balancing:
                    small = np.array(sizes) <= average
                    shares = shares * small if (shares * small).any() else small.astype(float)
                counts = largest_remainder(len(groups[group]), shares.tolist(), sizes)
                deal_out(groups[group], counts, partitions)
            if min(map(len, partitions)) >= self.min_partition_size:
                for partition in partitions if self.shuffle else []:
                    generator.shuffle(partition)
                return partitions
        return None

    def _advice(self, groups: Mapping[str, list[int]]) -> str:
        total, largest = sum(map(len, groups.values())), max(map(len, groups.values()))
        why = (
            f"dataset.alpha = {self.alpha} makes the shares very unequal. Raise dataset.alpha"
            if self._drawn(groups, EVEN)
            else f"no dataset.alpha can, as each of {len(groups)} groups of at most {largest} is "
            "dealt by itself. Use larger groups (dataset.partitioner-args = partition_by=subject) "
            "or dataset.partitioner = iid"
        )
        return (
            f"No draw gave each of {self.num_partitions} clients the dataset.min-partition-size = "
            f"{self.min_partition_size} of {total} training questions: {why}, lower "
            "dataset.min-partition-size, or use fewer clients."
        )
