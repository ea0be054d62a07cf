"""Which sample goes to which client, from the samples' groups alone: skewed, and reproducible."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Sequence

from fednano_flwr.data.errors import DataError


def dirichlet_partitions(
    groups: Sequence[str], num_partitions: int, alpha: float, seed: int, min_partition_size: int
) -> list[list[int]]:
    """Deal samples to partitions, each group in proportions drawn from Dirichlet(alpha).

    flwr-datasets' DirichletPartitioner, after Yurochkin et al., ICML 2019. The smaller `alpha`,
    the fewer partitions share a group.

    Args:
        groups: the group of each sample.
        min_partition_size: at least so many samples a partition; the draw is repeated up to ten
            times until it is so.

    Returns:
        For each partition the indices of its samples, shuffled; each index is in exactly one.

    Raises:
        DataError: a setting is out of its range, or no draw gave every partition enough samples.
    """
    _check_settings(len(groups), num_partitions, alpha, seed, min_partition_size)

    # Imported here: it takes seconds, and only this function needs it.
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by="group",
        alpha=float(alpha),
        min_partition_size=min_partition_size,
        self_balancing=False,
        shuffle=True,
        seed=seed,
    )
    partitioner.dataset = Dataset.from_dict(
        {"group": list(groups), "index": list(range(len(groups)))}
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each repeated draw; failing is reported below
            return [list(partitioner.load_partition(k)["index"]) for k in range(num_partitions)]
    except ValueError as error:
        raise DataError(
            f"No draw gave each of {num_partitions} clients the {min_partition_size} training "
            f"questions that dataset.min-partition-size asks for: there are {len(groups)}, and "
            f"dataset.alpha = {alpha} makes the shares very unequal. Raise dataset.alpha, lower "
            "dataset.min-partition-size, or use fewer clients."
        ) from error


def proportional_partitions(
    test_groups: Sequence[str],
    train_groups: Sequence[str],
    train_partitions: Sequence[Sequence[int]],
    seed: int,
) -> list[list[int]]:
    """Deal test samples so that each partition is tested on what it is trained on.

    A group's test samples, shuffled, are dealt in the proportions in which its training samples
    were (largest remainder; a tie goes to the partition with the fewest test samples so far, then
    to the lowest id). A group without training samples is dealt evenly.

    Returns:
        For each partition the indices of its test samples, group by group; each index is in
        exactly one. Where test samples are few, a partition may have none.
    """
    table = group_table(train_groups, train_partitions)
    even = [1] * len(train_partitions)
    generator = random.Random(seed)
    partitions: list[list[int]] = [[] for _ in train_partitions]
    for group in sorted(set(test_groups)):
        indices = [index for index, other in enumerate(test_groups) if other == group]
        generator.shuffle(indices)
        sizes = [len(partition) for partition in partitions]
        counts = _largest_remainder(len(indices), table.get(group, even), sizes)
        for partition, count in zip(partitions, counts, strict=True):
            partition += indices[:count]
            del indices[:count]
    return partitions


def group_table(groups: Sequence[str], partitions: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """How many samples of each group each partition has: group (sorted) to a count a partition."""
    counts = [Counter(groups[index] for index in partition) for partition in partitions]
    return {group: [count[group] for count in counts] for group in sorted(set(groups))}


def _largest_remainder(total: int, weights: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, as close to proportional to `weights` as can be."""
    shares = [divmod(total * weight, sum(weights)) for weight in weights]
    counts = [whole for whole, _ in shares]
    order = sorted(range(len(weights)), key=lambda k: (-shares[k][1], sizes[k] + counts[k], k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return counts


def _check_settings(
    num_samples: int, num_partitions: int, alpha: float, seed: int, min_partition_size: int
) -> None:
    if num_partitions < 1:
        raise DataError(f"num-partitions is {num_partitions}; at least 1 client is needed.")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise DataError(f"dataset.alpha is {alpha}; it must be a number above 0.")
    if seed < 0:
        raise DataError(f"seed is {seed}; it must be 0 or more.")
    if min_partition_size < 1:
        raise DataError(
            f"dataset.min-partition-size is {min_partition_size}; it must be at least 1, as a "
            "client without training questions cannot train."
        )
    if num_samples < num_partitions * min_partition_size:
        raise DataError(
            f"dataset.min-partition-size = {min_partition_size} for {num_partitions} clients takes "
            f"{num_partitions * min_partition_size} training questions, and there are "
            f"{num_samples}; no dataset.alpha can change that. Lower dataset.min-partition-size "
            "or use fewer clients."
        )
