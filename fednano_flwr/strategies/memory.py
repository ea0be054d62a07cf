"""A strategy's state between rounds, saved to and restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fednano_flwr.runs.checkpoint import Memory
from fednano_flwr.strategies.base import AdapterStrategy

FLOWER_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "FedAdagrad": ("m_t", "v_t"),
    "FedAdam": ("m_t", "v_t"),
    "FedAvgM": ("current_arrays", "momentum_vector"),
    "FedYogi": ("m_t", "v_t"),
}
"""Attributes of Flower's strategies that live from one round to the next; the others have none."""


def remember(strategy: Strategy) -> Memory:
    """The state that the strategy's next round depends on, bit for bit.

    Raises:
        TypeError: an attribute is of a kind that cannot be kept.
    """
    memory = Memory()
    for name in _attributes(strategy):
        layout, arrays = _encode(name, attrgetter(name)(strategy))
        memory.layout[name] = layout
        memory.arrays.update({f"{name}.{i}": array for i, array in enumerate(arrays)})
    return memory


def restore(strategy: Strategy, memory: Memory) -> None:
    """Restore the state of `remember` in a new strategy.

    Raises:
        ValueError: the memory is of another kind of strategy.
    """
    if set(memory.layout) != set(_attributes(strategy)):
        raise ValueError(
            f"{type(strategy).__name__} remembers {list(_attributes(strategy))}, the checkpoint "
            f"has {list(memory.layout)}; was it written by another version?"
        )
    for name, layout in memory.layout.items():
        count = sum(key.rpartition(".")[0] == name for key in memory.arrays)
        arrays = [memory.arrays[f"{name}.{i}"] for i in range(count)]
        owner, _, last = name.rpartition(".")
        setattr(attrgetter(owner)(strategy) if owner else strategy, last, _decode(layout, arrays))


def _attributes(strategy: Strategy) -> tuple[str, ...]:
    named = getattr(strategy, "named", None)
    if isinstance(named, Strategy):  # differential privacy around it; its spending has a file
        return ("clip_norm", *(f"named.{name}" for name in _attributes(named)))
    if isinstance(strategy, AdapterStrategy):
        return strategy.remembers
    return FLOWER_ATTRIBUTES.get(type(strategy).__name__, ())


def _encode(name: str, value: Any) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """A value's layout and its arrays, in their order."""
    if value is None or isinstance(value, bool | int | float):
        return {"kind": "plain", "value": value}, []
    if isinstance(value, ArrayRecord):
        return {"kind": "record", "keys": list(value)}, [one.numpy() for one in value.values()]
    if isinstance(value, list):
        return {"kind": "list"}, [np.asarray(one) for one in value]
    if isinstance(value, dict) and all(isinstance(one, torch.Tensor) for one in value.values()):
        keys = list(value)
        return {"kind": "tensors", "keys": keys}, [one.cpu().numpy() for one in value.values()]
    if isinstance(value, dict):
        return {"kind": "arrays", "keys": list(value)}, [np.asarray(v) for v in value.values()]
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot keep")


def _decode(layout: Mapping[str, Any], arrays: list[NDArray[Any]]) -> Any:
    kind, keys = layout["kind"], layout.get("keys", [])
    if kind == "plain":
        return layout["value"]
    if kind == "list":
        return arrays
    if kind == "record":
        return ArrayRecord({key: Array(one) for key, one in zip(keys, arrays, strict=True)})
    if kind == "tensors":
        return {key: torch.from_numpy(one) for key, one in zip(keys, arrays, strict=True)}
    return dict(zip(keys, arrays, strict=True))
