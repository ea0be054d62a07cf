"""What a SuperNode is told with `--node-config`, read as Flower reads it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.config.node import KEYS, NodeConfig
from fednano_flwr.doctor.finding import Finding, ok, problem

TYPES: Mapping[str, type] = {
    key: int if key in ("adapter-rank", "partition-id", "num-partitions") else str for key in KEYS
}
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")
EXAMPLE = 'a SuperNode takes --node-config \'data-path="/the/shard" edge-path="/the/bundle"\''


@dataclass(frozen=True)
class Node:
    """A node config; "" and None where it has no such key."""

    data_path: str = ""
    edge_path: str = ""
    device: str = ""
    ca_cert: str = ""
    adapter_rank: int | None = None
    partition_id: int | None = None
    num_partitions: int | None = None


def parse(text: str) -> dict[str, Any]:
    """The keys and values in a node config's text.

    Raises:
        click.ClickException: it is none.
        OSError: it names a .toml file that cannot be read.
    """
    from fednano_flwr.rounds.compat import parse_config_args

    return parse_config_args([text])


def read_node(text: str) -> tuple[Node, list[Finding]]:
    """The node that a text describes, as far as it does, and what is wrong with the text."""
    try:
        mapping = parse(text)
    except Exception as error:  # click's, or of the file it names
        return Node(), [
            problem(
                f"--node-config {text!r} cannot be read: {getattr(error, 'message', error)}",
                f"put text in double quotes and numbers in none: {EXAMPLE}",
            )
        ]
    findings = _left_over(text) + _unknown(mapping)
    good = {}
    for key, kind in TYPES.items():
        if key not in mapping:
            continue
        if type(mapping[key]) is not kind:
            findings.append(
                problem(
                    f"the node config's {key} = {mapping[key]!r}: must be "
                    + ("a text" if kind is str else "a whole number"),
                    f'write {key}="…"' if kind is str else f"write {key}=1, without quotes",
                )
            )
            continue
        good[key.replace("-", "_")] = mapping[key]
    if not findings:
        try:
            # Partition and rank have checks of their own below.
            NodeConfig.parse({key: mapping[key] for key in mapping if TYPES[key] is str})
        except ConfigError as error:
            findings.append(problem(str(error), "change it where the SuperNode is started"))
    return Node(**good), findings


def check_place(node: Node) -> list[Finding]:
    """Whether the node knows which partition is its own."""
    if node.data_path:
        return []  # the shard says it
    if node.partition_id is None or node.num_partitions is None:
        return [
            problem(
                "the node config has no data-path, nor partition-id and num-partitions: "
                "this client cannot know which questions are its own",
                f'{EXAMPLE}; or "partition-id=0 num-partitions=2" where it reads the data set',
            )
        ]
    if not 0 <= node.partition_id < node.num_partitions:
        return [
            problem(
                f"the node config's partition-id = {node.partition_id}, num-partitions = "
                f"{node.num_partitions}: partitions are counted from 0",
                f"give one from 0 to {node.num_partitions - 1}, each node its own",
            )
        ]
    return [ok(f"this client is partition {node.partition_id} of {node.num_partitions}")]


def check_rank(node: Node, config: RunConfig) -> list[Finding]:
    """Whether the run can have this node's own rank.

    Raises:
        ConfigError: its strategy cannot.
    """
    from fednano_flwr.strategies.registry import check_node_rank

    rank, most = node.adapter_rank, config.adapter.rank
    if rank is None:
        return []
    if not 1 <= rank <= most:
        return [
            problem(
                f"the node config's adapter-rank = {rank}: must be from 1 to adapter.rank = {most}",
                "change it, or ask whoever runs the server for a higher adapter.rank",
            )
        ]
    check_node_rank(rank, config)
    return [ok(f"this client's adapters have rank {rank} of {most}")]


def _left_over(text: str) -> list[Finding]:
    """What Flower passes over without a word."""
    rest = "" if text.endswith(".toml") else " ".join(_PAIR.sub(" ", text).split())
    if not rest:
        return []
    return [
        problem(
            f"--node-config: {rest!r} is not key=value, and Flower passes over it silently",
            f"write key=value without spaces around the sign: {EXAMPLE}",
        )
    ]


def _unknown(mapping: Mapping[str, Any]) -> list[Finding]:
    findings = []
    for key in mapping:
        if key in TYPES:
            continue
        near = difflib.get_close_matches(key, TYPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        findings.append(
            problem(f"the node config's {key}: no such key", f"{hint}there are {', '.join(TYPES)}")
        )
    return findings
