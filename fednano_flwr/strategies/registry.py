"""Strategies by the name that `strategy.name` gives them.

Own strategies are small files of this package. Flower's are taken by class name, as far as they
need nothing of the client but its adapters. Flower's FedProx and QFedAvg leave their part of the
client's training to the client, so naming them would only pretend; `fedprox` is here, whole.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import TYPE_CHECKING, Any

from fednano_flwr.config import ConfigError, RunConfig, Strategy

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

OWN: Mapping[str, str] = {
    "fednano": "fednano_flwr.strategies.fednano:FedNano",
    "fednano-ef": "fednano_flwr.strategies.fednano_ef:FedNanoEF",
    "fedavg": "fednano_flwr.strategies.fedavg:AdapterFedAvg",
    "fedavg-exact": "fednano_flwr.strategies.fedavg_exact:FedAvgExact",
    "fisher-product": "fednano_flwr.strategies.fisher_product:FisherProduct",
    "fedprox": "fednano_flwr.strategies.fedprox:FedProx",
    "feddpa-f": "fednano_flwr.strategies.feddpa_f:FedDPAF",
    "locft": "fednano_flwr.strategies.locft:LocFT",
    "centralized": "fednano_flwr.strategies.centralized:Centralized",
}
FLOWER = (
    "Bulyan",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedTrimmedAvg",
    "FedYogi",
    "Krum",
    "MultiKrum",
)
INSTEAD = {"FedProx": "fedprox"}
"""This project's, for those of Flower's that need a client that takes part."""
WRONG, SELECTED = "num_malicious_nodes", "num_nodes_to_select"
STANDS = {"Krum": 2, "MultiKrum": 2, "Bulyan": 4}
"""Of n replies, f = `num_malicious_nodes` may be wrong where n ≥ this · f + 3."""
# What the run decides itself: every strategy gets all the nodes it is shown.
ALL_NODES: dict[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}


def check_strategy(name: str, args: str = "") -> None:
    """Refuse an unknown strategy or argument before anything is loaded.

    Raises:
        ConfigError: with the strategies or arguments that there are.
    """
    if name in OWN:
        if args:
            raise ConfigError(
                f"strategy.args = {args!r}: {name} takes none (they are for Flower's)"
            )
        return
    if name in INSTEAD:
        raise ConfigError(
            f"strategy.name = {name!r}: Flower's leaves its part of the training to the client. "
            f"This project's has both: strategy.name = {INSTEAD[name]!r}"
        )
    if name not in FLOWER:
        raise ConfigError(
            f"strategy.name = {name!r}: there is no such strategy. This project's: "
            f"{', '.join(OWN)}. Flower's: {', '.join(FLOWER)}"
        )
    accepted = _flower_arguments(name)
    for key, value in parse_args(args).items():
        if key not in accepted:
            raise ConfigError(f"strategy.args: {name} takes {', '.join(accepted)}; not {key}")
        least = 1 if key == SELECTED else 0
        if isinstance(accepted[key], int) and not (isinstance(value, int) and value >= least):
            raise ConfigError(
                f"strategy.args: {key} = {value}: must be a whole number, {least} or more"
            )


def check_unread(config: Strategy, usual: Strategy) -> None:
    """Refuse a value that would change nothing: not the default, and not read by the strategy.

    An unknown strategy is left to `check_strategy`.

    Args:
        usual: the section as it is by default.

    Raises:
        ConfigError: with the strategies that read the key.
    """
    if config.name not in (*OWN, *FLOWER):
        return
    for field in (f.name for f in fields(Strategy) if f.name not in ("name", "args")):
        value = getattr(config, field)
        if value != getattr(usual, field) and field not in reads(config.name):
            able = ", ".join(name for name in OWN if field in reads(name))
            raise ConfigError(
                f"strategy.{field.replace('_', '-')} = {value!r}: {config.name} does not use it; "
                f"those that do: {able}"
            )


def reads(name: str) -> tuple[str, ...]:
    """Which fields of the config count for a strategy; Flower's know `strategy.args` alone."""
    return _own_class(name).reads if name in OWN else ()


def described(config: RunConfig) -> str:
    """The strategy and all that its merge depends on, as keys and values."""
    strategy, privacy = config.strategy, config.privacy
    parts: dict[str, object] = {"strategy.name": strategy.name}
    keys = reads(strategy.name) if strategy.name in OWN else ("args",)
    parts |= {f"strategy.{key.replace('_', '-')}": getattr(strategy, key) for key in keys}
    if privacy.dp != "none":
        parts |= {"privacy.dp": privacy.dp, "privacy.clip-norm": privacy.clip_norm}
        parts["privacy.noise-multiplier"] = privacy.noise_multiplier
    return ", ".join(f"{key} = {value!r}" for key, value in parts.items())


def check_ranks(config: RunConfig) -> None:
    """Refuse `adapter.ranks` that the run cannot merge.

    Raises:
        ConfigError: with the reason, and the strategies that can.
    """
    adapter = config.adapter
    if set(adapter.clients_ranks) != {adapter.rank}:
        _check_lower_ranks(config, "adapter.ranks", repr(adapter.ranks))


def check_node_rank(rank: int, config: RunConfig) -> None:
    """Refuse a rank from a node config, in its range, that the run cannot merge.

    Raises:
        ConfigError: as `check_ranks`.
    """
    if rank != config.adapter.rank:
        _check_lower_ranks(config, "the node config's adapter-rank", repr(rank))


def _check_lower_ranks(config: RunConfig, key: str, value: str) -> None:
    """Refuse clients of lower ranks, which `key` = `value` asks for, where they cannot be."""
    strategy, upload = config.strategy, config.upload
    if not merges_ranks(strategy.name):
        raise ConfigError(f"{key} = {value}: {refusal(strategy.name)}")
    if upload.adapters != "float32":
        raise ConfigError(
            f"{key} = {value}, upload.adapters = {upload.adapters!r}: packed adapters are changes "
            "of those that were sent, which clients of different ranks have not; use "
            'upload.adapters = "float32"'
        )
    if config.bounds.clip_update_norm:
        raise ConfigError(
            f"{key} = {value}, bounds.clip-update-norm = {config.bounds.clip_update_norm:g}: "
            "adapters of a lower rank have no difference to those that were sent; use "
            "bounds.clip-update-norm = 0"
        )
    if strategy.server_rate != 1 and "server_rate" in reads(strategy.name):
        raise ConfigError(
            f"{key} = {value}, strategy.server-rate = {strategy.server_rate:g}: what a client of a "
            "lower rank cannot hold would count as its change, and the server would go further "
            "away from it; use strategy.server-rate = 1"
        )


def merges_ranks(name: str) -> bool:
    """Whether a strategy can merge adapters of different ranks."""
    return name in OWN and getattr(_own_class(name), "merges_ranks", False)


def refusal(name: str) -> str:
    """Why a strategy cannot have clients of different ranks, and which can."""
    able = ", ".join(filter(merges_ranks, OWN))
    return (
        f"strategy.name = {name!r} needs adapters of rank adapter.rank from every client; those "
        f"that merge the products of different ranks: {able}"
    )


def check_replies(config: Strategy, replies: int) -> None:
    """Refuse more wrong clients than a strategy stands among so many replies.

    Raises:
        ConfigError: with the number of replies that it needs.
    """
    wrong = int(parse_args(config.args).get(WRONG, 0)) if config.name in STANDS else 0
    needed = STANDS.get(config.name, 0) * wrong + 3
    if (wrong or config.name == "Bulyan") and replies < needed:
        raise ConfigError(
            f"strategy.name = {config.name!r}, strategy.args = {config.args!r}: {WRONG} = {wrong} "
            f"needs {needed} clients that train in a round, and there are {replies}"
        )


def make_strategy(config: Strategy) -> FlowerStrategy:
    """The strategy that the run config names.

    Raises:
        ConfigError: there is none of that name, or it does not take the arguments.
    """
    check_strategy(config.name, config.args)
    if config.name in OWN:
        return _own_class(config.name)(config)
    try:
        return _flower_class(config.name)(**ALL_NODES, **parse_args(config.args))
    except ValueError as error:
        raise ConfigError(f"strategy.args = {config.args!r}: {config.name}: {error}") from None


def parse_args(text: str) -> dict[str, float]:
    """`"eta=0.01, tau=0.001"` as a dictionary.

    Raises:
        ConfigError: not of that form, or not finite.
    """
    arguments: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = part.partition("=")
        try:
            arguments[key.strip()] = int(value) if value.strip().isdigit() else float(value)
        except ValueError:
            raise ConfigError(
                f"strategy.args = {text!r}: must be numbers as in eta=0.01,tau=0.001"
            ) from None
        if not isfinite(arguments[key.strip()]):
            raise ConfigError(f"strategy.args = {text!r}: {key.strip()} must be a finite number")
    return arguments


def _own_class(name: str) -> Any:
    module, _, attribute = OWN[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _flower_class(name: str) -> Any:
    return getattr(importlib.import_module("flwr.serverapp.strategy"), name)


def _flower_arguments(name: str) -> dict[str, float]:
    """Numeric arguments of one of Flower's strategies, but for those the run sets; defaults."""
    parameters = inspect.signature(_flower_class(name)).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.name not in ALL_NODES and isinstance(p.default, (int, float))
    }
