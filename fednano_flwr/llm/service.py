"""The LLM service that a run config asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from fednano_flwr.config import Adapter, LLMConfig, Model
from fednano_flwr.exchange.at_host import HostLora
from fednano_flwr.exchange.protocol import LLMService
from fednano_flwr.exchange.wire.metrics import NO_METRICS, ServiceMetrics
from fednano_flwr.llm.caches import Caches
from fednano_flwr.llm.client_state import Graphs
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.llm.sessions import MB, Sessions
from fednano_flwr.models.bundle import open_whole
from fednano_flwr.models.connector import HostConnectors
from fednano_flwr.models.device import threads
from fednano_flwr.models.llm_half import load_llm_half

RAY_STARTS_WITHIN = 60.0
"""Seconds that Flower's simulation may take to start Ray."""
FEATURES_OF_NODE = 200_000
"""Pictures whose features are kept of one node; then its least recently used go."""


def load_host(
    model: str,
    config: LLMConfig,
    batches_of_owner: int = 1,
    metrics: ServiceMetrics = NO_METRICS,
    revision: str = "",
    waiting_of_owner: int = 8,
    family: str = "",
    lora: Adapter | None = None,
    merged: HostLora | None = None,
    connector: str = "",
) -> QueuedLLM:
    """The frozen language model of checkpoint `model`, loaded in this process.

    Args:
        batches_of_owner: whose answers one client may have under way at once; 0: any number.
        metrics: of the service.
        revision: branch, tag or commit of a model on the hub.
        waiting_of_owner: requests of one client that may wait; 0 for no limit.
        family: `model.family`.
        lora: rank, scale and targets of a LoRA inside; None for none.
        merged: its values where a call brings none.
        connector: dtype of the connectors, in which clients compute; "" for none.

    Raises:
        ConfigError: no such model, its family cannot be cut, or this machine cannot hold it so.
    """
    with ExitStack() as stack:
        stack.enter_context(threads(config.threads))  # until the host is closed
        connectors = None
        if connector:
            whole, device = open_whole(model, revision, family), torch.device(config.device)
            connectors = HostConnectors(whole, device, getattr(torch, connector))
        half = load_llm_half(
            model,
            config.device,
            config.dtype,
            config.quantization,
            config.checkpointing,
            config.device_map,
            revision,
            family,
            lora,
        )
        features = FeatureStore(
            config.feature_memory_mb * 2**20,
            config.feature_disk_mb * 2**20,
            FEATURES_OF_NODE,
            config.max_tokens * (half.hidden_size + half.deep_size) * half.dtype.itemsize,
        )
        caches = Caches(config.max_tokens, of_owner=batches_of_owner)
        sessions = None
        if half.lora is not None:
            sessions = Sessions(half.lora, config.max_clients, config.session_memory_mb * MB)
        host = FrozenLLM(
            half, config.max_tokens, features, Graphs(), caches, sessions, merged, connectors
        )
        return QueuedLLM(
            host,
            config.batch_tokens,
            owner_waiting=waiting_of_owner,
            metrics=metrics,
            at_end=stack.pop_all().close,
        )


@contextmanager
def open_host(
    model: Model,
    config: LLMConfig,
    in_simulation: bool,
    say: Callable[[str], None],
    metrics: ServiceMetrics = NO_METRICS,
    lora: Adapter | None = None,
    connector: str = "",
) -> Iterator[LLMService]:
    """The service, closed after the block: the model in this process, or replicas in their own.

    Args:
        in_simulation: Flower starts Ray in this process, and replicas join it.
        say: takes lines for people.
        metrics: of the service; of replicas, what is known in this process.
        lora: rank, scale and targets of a LoRA inside; None for none.
        connector: as in `load_host`.
    """
    load = partial(
        load_host,
        model.name,
        config,
        revision=model.revision,
        family=model.family,
        lora=lora,
        connector=connector,
    )
    if config.replicas == 1:
        with load(metrics=metrics) as host:
            yield host
        return
    from fednano_flwr.llm.replicas import Replicas  # needs Ray, which a lone host does not

    with Replicas(
        load,
        config.replicas,
        num_gpus=config.replica_gpus,
        wait_for_ray=RAY_STARTS_WITHIN if in_simulation else 0.0,
        say=say,
    ) as replicas:
        metrics.add_gauges(replicas.gauges)
        yield replicas
