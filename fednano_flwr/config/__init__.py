"""The run config, parsed once into typed, validated dataclasses; nothing else reads raw keys.

Flower hands the merged config to both apps as flat keys (`"dataset.alpha"`). keys.py says what a
key is, sections.py declares them all, project.py finds their defaults in pyproject.toml.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fednano_flwr.config.addresses import address_to_dial, host_and_port, is_loopback
from fednano_flwr.config.keys import (
    LARGEST,
    ConfigError,
    Key,
    Section,
    build,
    check_device,
    declared,
    key,
)
from fednano_flwr.config.sections import (
    ALL_SITES,
    DTYPES,
    EXCHANGE_DTYPES,
    FISHER_ESTIMATES,
    LLM_SITE,
    MOST_SECONDS,
    SITES,
    TRACKERS,
    UPLOAD_ADAPTERS,
    UPLOAD_FISHERS,
    Adapter,
    Bounds,
    Dataset,
    Edge,
    Exchange,
    LLMConfig,
    Model,
    Privacy,
    RunFolder,
    Strategy,
    Upload,
)

__all__ = [
    "ALL_SITES",
    "DTYPES",
    "EXCHANGE_DTYPES",
    "FISHER_ESTIMATES",
    "LARGEST",
    "LLM_SITE",
    "SITES",
    "TRACKERS",
    "UPLOAD_ADAPTERS",
    "UPLOAD_FISHERS",
    "Adapter",
    "Bounds",
    "ConfigError",
    "Dataset",
    "Edge",
    "Exchange",
    "LLMConfig",
    "Model",
    "Privacy",
    "RunConfig",
    "RunFolder",
    "Strategy",
    "Upload",
    "address_to_dial",
    "check_device",
    "check_keys",
    "host_and_port",
    "is_loopback",
    "key_types",
    "keys",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Everything a run can be told; docs/config.md is the list."""

    seed: int = key(
        "fixes every random draw of the run, each by a seed of its own", least=0, most=LARGEST
    )
    resume: str = key(
        "`never`, `auto` (continue the run that `run.name` names), or a run's folder",
        path="maybe",
        resumable=True,
        place=True,
    )
    num_server_rounds: int = key(
        "rounds of training, after round 0, which scores the frozen model", least=0
    )
    fraction_train: float = key(
        "share of the clients that train in a round, at least `min-replies`", above=0, most=1
    )
    fraction_evaluate: float = key(
        "share of the clients that score a round; all score the first and last", above=0, most=1
    )
    min_available_nodes: int = key(
        "clients to wait for before the first round; `--clients` sets it", least=1
    )
    min_replies: int = key("fewer good replies than this end the run", least=1)
    round_timeout: float = key(
        "seconds without progress after which a client counts as lost",
        resumable=True,
        above=0,
        most=MOST_SECONDS,
    )
    round_limit: float = key(
        "most seconds for a round's training, or for its evaluation",
        resumable=True,
        above=0,
        most=MOST_SECONDS,
    )
    local_epochs: int = key("passes over the client's training questions in a round", least=1)
    batch_size: int = key("questions in a step; fewer where they exceed `llm.max-tokens`", least=1)
    learning_rate: float = key("of AdamW, whose state starts anew each round", above=0)
    learning_rate_schedule: str = key(
        "how the rate falls from round to round", choices=("constant", "cosine", "linear")
    )
    learning_rate_end: float = key(
        "share of the rate that is left in the last round, where it falls", least=0, most=1
    )
    warm_up_rounds: int = key("first rounds, in which the rate rises in equal steps", least=0)
    weight_decay: float = key("of AdamW", least=0)
    max_grad_norm: float = key("longer gradients are scaled down to this norm", above=0)
    max_answer_tokens: int = key(
        "most tokens of a generated answer; only free answers generate", least=1
    )
    run: RunFolder
    model: Model
    dataset: Dataset
    adapter: Adapter
    strategy: Strategy
    edge: Edge
    llm: LLMConfig
    exchange: Exchange
    upload: Upload
    bounds: Bounds
    privacy: Privacy

    def check(self) -> None:
        self.require(
            self.round_limit >= self.round_timeout,
            "round_limit",
            f"at least round-timeout ({self.round_timeout:g})",
        )
        self.require(
            self.warm_up_rounds < max(1, self.num_server_rounds),
            "warm_up_rounds",
            f"fewer than num-server-rounds ({self.num_server_rounds})",
        )
        self.require(
            self.resume != "auto" or bool(self.run.name),
            "resume",
            '"never", a run\'s folder, or "auto" with run.name, which says what to continue',
        )

    @classmethod
    def parse(cls, flat: Mapping[str, Any]) -> RunConfig:
        """Build the config from flat keys as in Flower's `context.run_config`.

        Raises:
            ConfigError: a key is unknown, missing, of the wrong type or out of range.
        """
        check_keys(flat)
        config = build(cls, flat)
        assert isinstance(config, cls)
        return config

    def flat(self) -> dict[str, Any]:
        """The config as flat keys again: `parse(config.flat()) == config`."""
        found: dict[str, Any] = {}
        for name in keys():
            value: Any = self
            for part in name.split("."):
                value = getattr(value, part.replace("-", "_"))
            found[name] = value
        return found


@cache
def keys() -> Mapping[str, Key]:
    """Every key of the run config and its declaration, in their order."""
    return {name: found for name, _, found in declared(RunConfig)}


@cache
def key_types() -> Mapping[str, type]:
    """Every key of the run config and its type, in their order."""
    return {name: kind for name, kind, _ in declared(RunConfig)}


def check_keys(flat: Mapping[str, Any]) -> None:
    """Refuse unknown keys, naming the nearest known one and listing all.

    Raises:
        ConfigError: a key that no section has.
    """
    known = key_types()
    for name in flat:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown key {name}.{hint} The keys are: {', '.join(known)}")
