"""The LLM service that a run config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fednano_flwr.config import LLM
from fednano_flwr.exchange.protocol import LLMService
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.graphs import Graphs
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import load_llm_half


def load_host(model: str, config: LLM) -> QueuedLLM:
    """The frozen language model of checkpoint `model`, loaded in this process.

    Raises:
        ConfigError: no such model, its family cannot be cut, or this machine cannot hold it so.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    half = load_llm_half(model, config.device, config.dtype, config.quantization)
    features = FeatureStore(config.feature_memory_mb * 2**20, config.feature_disk_mb * 2**20)
    graphs = Graphs(config.max_open_graphs, config.graph_seconds)
    host = FrozenLLM(half, config.max_tokens, features, graphs)
    return QueuedLLM(host, config.batch_tokens, config.batch_wait_ms / 1000, config.max_waiting)


@contextmanager
def open_host(model: str, config: LLM) -> Iterator[LLMService]:
    """The service, closed after the block."""
    with load_host(model, config) as host:
        yield host
