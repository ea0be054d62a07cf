"""Which run configs are one but for the seed: their runs are repetitions of one experiment."""

from __future__ import annotations

import hashlib
import json

from fednano_flwr.config import RunConfig, keys


def matters(key: str) -> bool:
    """Whether runs that differ in it are of different experiments: not the seed, nor places."""
    declared = keys().get(key)
    return key != "seed" and not (declared and declared.place)


def digest_of(config: RunConfig, clients: int) -> str:
    """Of everything that decides a run's result but its seed."""
    flat = {key: value for key, value in config.flat().items() if matters(key)}
    text = json.dumps({**flat, "clients": clients}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
