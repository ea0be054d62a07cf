"""Which test sample goes to which client: those like what the client is trained on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from fednano_flwr.base.seeds import Purpose, derive_seed


def proportional_partitions(
    test_groups: Sequence[str],
    train_groups: Sequence[str],
    train_partitions: Sequence[Sequence[int]],
    seed: int,
) -> list[list[int]]:
    """Deal test samples so that each partition is tested on what it is trained on.

    A group's test samples, shuffled, are dealt in the proportions in which its training samples
    were (largest remainder; a tie goes to the partition with the fewest test samples so far, then
    to the lowest id). A group that no partition trains on is dealt evenly.

    Returns:
        For each partition the indices of its test samples, group by group; each index is in
        exactly one. Where test samples are few, a partition may have none.
    """
    table = group_table(train_groups, train_partitions)
    even = [1] * len(train_partitions)
    generator = random.Random(derive_seed(Purpose.TEST_PARTITIONS, seed))
    partitions: list[list[int]] = [[] for _ in train_partitions]
    for group, indices in sorted(indices_by_group(test_groups).items()):
        generator.shuffle(indices)
        trained = table.get(group, even)
        sizes = [len(partition) for partition in partitions]
        counts = largest_remainder(len(indices), trained if any(trained) else even, sizes)
        deal_out(indices, counts, partitions)
    return partitions


def cut(
    partition: Sequence[int], fraction: float, seed: int, partition_id: int
) -> tuple[list[int], list[int]]:
    """Cut one client's own samples into those to train on and those to test on.

    Args:
        fraction: share of the samples to test on, in (0, 1), rounded; at least one sample is
            trained on, and, of two or more, at least one tested on.

    Returns:
        Train and test indices, in the order they had.
    """
    total = len(partition)
    tested = min(max(round(total * fraction), 1), total - 1) if total else 0
    own = random.Random(derive_seed(Purpose.HELD_OUT, seed, partition_id))
    chosen = set(own.sample(range(total), tested))
    train = [index for place, index in enumerate(partition) if place not in chosen]
    return train, [index for place, index in enumerate(partition) if place in chosen]


def indices_by_group(groups: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return found


def deal_out(
    indices: Sequence[int], counts: Sequence[int], partitions: Sequence[list[int]]
) -> None:
    """Append the first so many of `indices` to the first partition, the next to the second, …"""
    start = 0
    for partition, count in zip(partitions, counts, strict=True):
        partition += indices[start : start + count]
        start += count


def group_table(groups: Sequence[str], partitions: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """How many samples of each group each partition has: group (sorted) to a count a partition."""
    counts = [Counter(groups[index] for index in partition) for partition in partitions]
    return {group: [count[group] for count in counts] for group in sorted(set(groups))}


def largest_remainder(total: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Whole numbers that add up to `total`, as close to proportional to `weights` as can be.

    A tie goes to the smallest of `sizes`, what each has so far, then to the first.
    """
    whole = sum(weights)
    shares = [divmod(total * weight, whole) for weight in weights]
    counts = [int(count) for count, _ in shares]
    order = sorted(range(len(weights)), key=lambda k: (-shares[k][1], sizes[k] + counts[k], k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return counts
