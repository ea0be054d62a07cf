"""Strategies by the name that `strategy.name` gives them.

A module of this package that defines a strategy is found by its name: `fedavg_exact.py` is
"fedavg-exact". Another package's is "module:Class". Flower's are taken by class name, as far as
they need nothing of the client but its adapters. Flower's FedProx and QFedAvg leave their part of
the client's training to the client, so naming them would only pretend; `fedprox` is here, whole.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednano_flwr.base.defined import class_defined_in
from fednano_flwr.config import ConfigError, RunConfig, Strategy

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

    from fednano_flwr.strategies.base import AdapterStrategy

SUPPORT = {"base", "llm_site", "memory", "merge", "registry"}
OWN = tuple(
    sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
        if module.name not in SUPPORT
    )
)
"""This project's."""
MEAN_ONLY = ("FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedYogi")
"""Flower's that use the mean of the updates only, which may be a noised one."""
FLOWER = tuple(sorted((*MEAN_ONLY, "Bulyan", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum")))
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


def own_class(name: str) -> type[AdapterStrategy] | None:
    """The class of an `AdapterStrategy` by its name; None for Flower's and unknown names.

    Raises:
        ConfigError: "module:Class" cannot be imported, or is no `AdapterStrategy`.
    """
    if name not in OWN and ":" not in name:
        return None
    from fednano_flwr.strategies.base import AdapterStrategy

    path, _, attribute = name.partition(":")
    if attribute:
        try:
            found = getattr(importlib.import_module(path), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"strategy.name = {name!r}: {error}") from None
        if not (isinstance(found, type) and issubclass(found, AdapterStrategy)):
            raise ConfigError(f"strategy.name = {name!r}: is no subclass of AdapterStrategy")
        return found
    return class_defined_in(f"{__package__}.{name.replace('-', '_')}", AdapterStrategy)


def make_strategy(config: Strategy, seed: int = 0) -> FlowerStrategy:
    """The strategy that the run config names.

    Args:
        seed: the run's.

    Raises:
        ConfigError: there is none of that name, or it does not take the arguments; says which
            strategies and arguments there are.
    """
    name, args = config.name, config.args
    if own := own_class(name):
        if args:
            raise ConfigError(f"strategy.args = {args!r}: {name} takes none; they are for Flower's")
        if not _merges(own):
            raise ConfigError(f"strategy.name = {name!r}: its class has no method `merge`")
        made = own(config)
        made.seed = seed
        return made
    if name in INSTEAD:
        raise ConfigError(
            f"strategy.name = {name!r}: Flower's leaves its part of the training to the client; "
            f"use this project's, {INSTEAD[name]!r}"
        )
    if name not in FLOWER:
        raise ConfigError(
            f"strategy.name = {name!r}: there is no such strategy. This project's: "
            f"{', '.join(OWN)}. Flower's: {', '.join(FLOWER)}. Another package's: module:Class"
        )
    flower = getattr(importlib.import_module("flwr.serverapp.strategy"), name)
    accepted = {
        parameter.name: parameter.default
        for parameter in inspect.signature(flower).parameters.values()
        if parameter.name not in ALL_NODES and isinstance(parameter.default, (int, float))
    }
    given = parse_args(args)
    for key, value in given.items():
        if key not in accepted:
            raise ConfigError(f"strategy.args: {name} takes {', '.join(accepted)}; not {key}")
        least = 1 if key == SELECTED else 0
        if isinstance(accepted[key], int) and not (isinstance(value, int) and value >= least):
            raise ConfigError(
                f"strategy.args: {key} = {value}: must be a whole number, {least} or more"
            )
    try:
        return flower(**ALL_NODES, **given)
    except ValueError as error:
        raise ConfigError(f"strategy.args = {args!r}: {name}: {error}") from None


def _merges(own: type[AdapterStrategy]) -> bool:
    """Whether a class says how it merges: by `merge`, or by its own `aggregate_train`."""
    from fednano_flwr.strategies.base import AdapterStrategy

    names = ("merge", "aggregate_train")
    return any(getattr(own, name) is not getattr(AdapterStrategy, name) for name in names)


def reads(name: str) -> tuple[str, ...]:
    """Which fields of the config a strategy uses; Flower's use `strategy.args` only."""
    own = own_class(name)
    return own.reads if own else ("args",)


def check_unread(config: Strategy, usual: Strategy) -> None:
    """Refuse a value that is not the default and that the strategy does not use.

    An unknown strategy is left to `make_strategy`.

    Args:
        usual: the section as it is by default.

    Raises:
        ConfigError: with the strategies that use the key.
    """
    if own_class(config.name) is None and config.name not in FLOWER:
        return
    for field in (f.name for f in fields(Strategy) if f.name not in ("name", "args")):
        value = getattr(config, field)
        if value != getattr(usual, field) and field not in reads(config.name):
            able = ", ".join(name for name in OWN if field in reads(name))
            raise ConfigError(
                f"strategy.{field.replace('_', '-')} = {value!r}: {config.name} does not use it; "
                f"those that do: {able}"
            )


def described(config: RunConfig) -> str:
    """The strategy and all that its merge depends on, as keys and values."""
    strategy, privacy = config.strategy, config.privacy
    parts: dict[str, object] = {"strategy.name": strategy.name}
    for key in reads(strategy.name):
        parts[f"strategy.{key.replace('_', '-')}"] = getattr(strategy, key)
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
        able = ", ".join(filter(merges_ranks, OWN))
        raise ConfigError(
            f"{key} = {value}: strategy.name = {strategy.name!r} needs adapters of rank "
            f"adapter.rank from every client; those that merge products of different ranks: {able}"
        )
    if upload.adapters != "float32":
        raise ConfigError(
            f"{key} = {value}, upload.adapters = {upload.adapters!r}: packed adapters are changes "
            "of those that were sent, and clients of other ranks were sent others; use "
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
            "lower rank cannot hold would count as its change; use strategy.server-rate = 1"
        )


def check_host_map(config: RunConfig) -> None:
    """Refuse a strategy that keeps a part of the model at the host where that cannot work.

    Raises:
        ConfigError: with the reason, and what to set.
    """
    own = own_class(config.strategy.name)
    if own is None or not own.keeps_map:
        return
    from fednano_flwr.exchange.registry import EXCHANGES

    kind, upload = config.exchange.kind, config.upload
    able = [name for name, one in EXCHANGES.items() if one.inputs.HAS_HIDDEN]
    if kind not in able:
        raise ConfigError(
            f"strategy.name = {config.strategy.name!r}, exchange.kind = {kind!r}: a part of the "
            "merged model is a map at the host, which is applied to frozen embeddings, and in this "
            f"exchange the host never has them; use exchange.kind = {' or '.join(map(repr, able))}"
        )
    if own.begins_anew and upload.adapters != "float32" and upload.error_feedback:
        raise ConfigError(
            f"strategy.name = {config.strategy.name!r}, upload.adapters = {upload.adapters!r}: "
            "each round has new factors, to which what rounding left out of the last ones must not "
            "be added; use upload.error-feedback = false"
        )


def merges_ranks(name: str) -> bool:
    """Whether a strategy can merge adapters of different ranks."""
    own = own_class(name)
    return own is not None and own.merges_ranks


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


def parse_args(text: str) -> dict[str, float]:
    """`"eta=0.01, tau=0.001"` as a dictionary.

    Raises:
        ConfigError: not of that form, or not finite.
    """
    arguments: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        try:
            arguments[key] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise ConfigError(
                f"strategy.args = {text!r}: must be numbers as in eta=0.01,tau=0.001"
            ) from None
        if not isfinite(arguments[key]):
            raise ConfigError(f"strategy.args = {text!r}: {key} must be a finite number")
    return arguments
