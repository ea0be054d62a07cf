"""Which run configs are one but for the seed: their runs are repetitions of one experiment."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fednano_flwr.config import RunConfig, keys

OF_LLM_SITE = (
    "adapter.llm-rank",
    "adapter.llm-targets",
    "adapter.llm-learning-rate",
    "llm.session-memory-mb",
)
"""Keys that nothing reads unless `adapter.sites` has `llm`."""


def matters(key: str) -> bool:
    """Whether runs that differ in it are of different experiments: not the seed, nor places."""
    declared = keys().get(key)
    return key != "seed" and not (declared and declared.place)


def deciding(config: RunConfig) -> dict[str, Any]:
    """The keys that decide a run's result, but for its seed, and their values.

    Those of the LoRA inside the language model do not where there is none, nor where the connector
    is while that is at clients alone.
    """
    unread = () if config.adapter.at_llm else OF_LLM_SITE
    if not config.exchange.connector_at_host:
        unread = (*unread, "exchange.connector-at")
    flat = config.flat().items()
    return {key: value for key, value in flat if matters(key) and key not in unread}


def digest_of(config: RunConfig, clients: int) -> str:
    """Of everything that decides a run's result but its seed."""
    text = json.dumps({**deciding(config), "clients": clients}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
