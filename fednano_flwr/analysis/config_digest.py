"""Which run configs are one but for the seed: their runs are repetitions of one experiment."""

from __future__ import annotations

import hashlib
import json

from fednano_flwr.config import RunConfig

NO_MATTER = (
    "seed",
    "resume",
    "run.dir",
    "run.name",
    "run.keep-checkpoints",
    "run.trackers",
    "edge.state-dir",
    "edge.feature-dir",
)
"""Keys that are not in a digest: the seed, places on this machine or elsewhere, and what is about
runs that were stopped."""


def digest_of(config: RunConfig, clients: int) -> str:
    """Of everything that decides a run's result but its seed."""
    flat = {key: value for key, value in config.flat().items() if key not in NO_MATTER}
    text = json.dumps({**flat, "clients": clients}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
