"""The node config, what a SuperNode says of its own machine, parsed once into a checked dataclass.

Flower hands the ClientApp a flat mapping: in simulation `partition-id` and `num-partitions`, in
deployment what `flower-supernode --node-config` was given. What each key means: docs/config.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fednano_flwr.config import ConfigError, RunConfig, check_device

RENAMED = {"bundle-path": "edge-path"}
ALONE = (0, 1)
"""The partition of a shard that its client dealt to itself alone."""


@dataclass(frozen=True)
class NodeConfig:
    """What a node has of its own; None where its config does not say.

    Attributes:
        data_path: folder of its shard, written by `fednano partition`, or a file of rows.
        edge_path: folder of its edge bundle, written by `fednano split`; before `edge.bundle`.
        device: PyTorch device of its half of the model; before `edge.device`.
        ca_cert: file of the CA that vouches for the LLM service; before `exchange.ca-cert`.
        adapter_rank: of its adapters, at least 1; before `adapter.ranks`.
        partition_id, num_partitions: which part of the data is its own; beside `data_path` only
            for a shard that is all of its own data, or as the shard says.

    Raises:
        ConfigError: a value that cannot be used, or one of the last two without the other.
    """

    data_path: str | None = None
    edge_path: str | None = None
    device: str | None = None
    ca_cert: str | None = None
    adapter_rank: int | None = None
    partition_id: int | None = None
    num_partitions: int | None = None

    def __post_init__(self) -> None:
        for key in ("data-path", "edge-path", "device", "ca-cert"):
            _check(self, key, lambda v: type(v) is str and v.strip() != "", "text, and not empty")
        if self.device is not None:
            check_device("the node config's device", self.device)
        _check(self, "adapter-rank", _whole(1), "a whole number, at least 1")
        _check(self, "partition-id", _whole(0), "a whole number, 0 or more")
        _check(self, "num-partitions", _whole(1), "a whole number, at least 1")
        if (self.partition_id is None) != (self.num_partitions is None):
            missing = "partition-id" if self.partition_id is None else "num-partitions"
            raise ConfigError(f"the node config has no {missing}: {HOW_TO_SAY}")
        if self.partition_id is not None and self.num_partitions is not None:
            below = _whole(0, self.num_partitions)
            _check(self, "partition-id", below, f"below num-partitions = {self.num_partitions}")

    @classmethod
    def parse(cls, mapping: Mapping[str, object]) -> NodeConfig:
        """
        Raises:
            ConfigError: an unknown key, or as above.
        """
        for key in mapping:
            if key in RENAMED:
                raise ConfigError(f"the node config has {key}: this key is now {RENAMED[key]}")
            if key not in KEYS:
                raise ConfigError(
                    f"the node config has an unknown key {key}. The keys are: {', '.join(KEYS)}"
                )
        return cls(**{_attribute(key): value for key, value in mapping.items()})  # type: ignore[arg-type]

    def applied_to(self, config: RunConfig) -> RunConfig:
        """The run config as it is on this node."""
        if self.device is None:
            return config
        return dataclasses.replace(
            config, edge=dataclasses.replace(config.edge, device=self.device)
        )

    def rank_in(self, config: RunConfig) -> int:
        """The rank of this node's adapters; 0 where `adapter.ranks` decides.

        Raises:
            ConfigError: it is above the run's.
        """
        if self.adapter_rank is None:
            return 0
        most = config.adapter.rank
        in_range = f"a whole number from 1 to adapter.rank = {most}"
        _check(self, "adapter-rank", _whole(1, most + 1), in_range)
        return self.adapter_rank

    def partition(self, shard: Mapping[str, int] | None) -> tuple[int, int]:
        """Which partition this node has, and of how many.

        Args:
            shard: `partition_id` and `num_partitions` of the shard in `data_path`; None where there
                is none, or a file.
                One of several knows its place; one that is all of a client's own data (0 of 1) is
                at the place that the node config says.

        Raises:
            ConfigError: nothing says it, or shard and node config differ.
        """
        said = None
        if self.partition_id is not None and self.num_partitions is not None:
            said = (self.partition_id, self.num_partitions)
        found = (shard["partition_id"], shard["num_partitions"]) if shard is not None else None
        if said and found and found not in (said, ALONE):
            raise ConfigError(
                f"the node config has partition-id = {said[0]}, num-partitions = {said[1]}, and "
                f"the shard in its data-path is {found[0]} of {found[1]}: leave the two out"
            )
        if which := said or found:
            return which
        what = "no partition-id and no data-path"
        if self.data_path is not None:
            what = "no partition-id, and its data-path, a file of rows, does not say which it is"
        raise ConfigError(f"the node config has {what}: {HOW_TO_SAY}")


KEYS = tuple(field.name.replace("_", "-") for field in dataclasses.fields(NodeConfig))
HOW_TO_SAY = (
    'start the SuperNode with --node-config "partition-id=0 num-partitions=2" (each node its own '
    'partition-id), or with data-path="/the/shard" of a folder that `fednano partition` wrote'
)


def _attribute(key: str) -> str:
    return key.replace("-", "_")


def _whole(least: int, below: int | None = None) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return type(value) is int and value >= least and (below is None or value < below)

    return check


def _check(node: NodeConfig, key: str, ok: Callable[[object], bool], accepts: str) -> None:
    """Refuse a value that is given and not ok."""
    value = getattr(node, _attribute(key))
    if value is not None and not ok(value):
        raise ConfigError(f"the node config's {key} = {value!r}: must be {accepts}")
