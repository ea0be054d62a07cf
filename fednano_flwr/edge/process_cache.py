"""What a client process keeps from one message to the next: model, questions, image features.

In deployment each message has a process of its own, so nothing may rely on finding any of it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path

import torch

from fednano_flwr.base.resources import cache_folder
from fednano_flwr.config import ConfigError, Dataset, Edge, Model, RunConfig
from fednano_flwr.data.own import own_shard
from fednano_flwr.data.shard import Shard, read_shards
from fednano_flwr.data.table import in_memory
from fednano_flwr.edge.encoder import QuestionEncoder, load_encoder
from fednano_flwr.edge.feature_cache import FeatureCache, FeatureFolder, Features, model_digest
from fednano_flwr.edge.questions import used_tokens
from fednano_flwr.edge.shard import ClientSpec, EncodedShard
from fednano_flwr.models.bundle import open_checkpoint
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf, TokenTable
from fednano_flwr.models.processor import has_processor

CLIENTS_KEPT = 8
"""Of whom questions and token embeddings are kept, where nothing else is asked for."""


def source_of(config: RunConfig, edge_path: str = "") -> Model:
    """What a client's half and its processor are read from.

    Args:
        edge_path: the node's own edge bundle.
    """
    bundle = edge_path or config.edge.bundle
    return Model(bundle) if bundle else config.model


def state_folder(edge: Edge) -> Path:
    """Where clients keep what is their own."""
    return Path(edge.state_dir).expanduser() if edge.state_dir else cache_folder() / "clients"


def feature_folder(edge: Edge) -> Path:
    """Where image features are kept."""
    return Path(edge.feature_dir).expanduser() if edge.feature_dir else cache_folder() / "features"


@lru_cache(maxsize=2)  # the server's in a simulation, and its clients' bundle
def checkpoint(source: Model) -> ModelCheckpoint:
    return open_checkpoint(source.name, source.revision, source.family)


@lru_cache(maxsize=2)
def encoder(source: Model) -> QuestionEncoder:
    return load_encoder(checkpoint(source))


def check_processor_here(model: Model) -> bool:
    """Refuse a model whose processor does not fit it; returns whether it has one here.

    Raises:
        ConfigError: there is no such model, or its processor, tokenizer and config do not fit.
    """
    here = has_processor(checkpoint(model).folder)
    if here:
        encoder(model)
    return here


class LoadedHalf:
    """The client's half of a model and its features, shared by the clients of a process.

    Attributes:
        half: vision encoder and connector.
        memory, disk: features computed before; disk holds nothing where it is turned off.
    """

    def __init__(self, source: Model, edge: Edge) -> None:
        dtype = getattr(torch, edge.dtype)
        self.half = EdgeHalf(checkpoint(source), torch.device(edge.device), dtype)
        self.memory = FeatureCache(edge.feature_cache_mb * 2**20)
        self.disk: Features = FeatureCache(0)
        if edge.feature_disk_mb:
            digest = model_digest(self.half, encoder(source))
            max_bytes = edge.feature_disk_mb * 2**20
            self.disk = FeatureFolder(feature_folder(edge), max_bytes, digest, self.half.device)

    @cached_property
    def vocabulary(self) -> TokenTable:
        """The embeddings of all tokens."""
        return self.half.token_table()


def loaded_half(source: Model, edge: Edge) -> LoadedHalf:
    """Load the shared half, if this process has not done so before.

    Raises:
        ConfigError: model or processor are not as the config says.
    """
    return _loaded_half(source, _without_state(edge))


_loaded_half = lru_cache(maxsize=1)(LoadedHalf)


def _without_state(edge: Edge) -> Edge:
    """All that what is kept here depends on, so that runs share it."""
    return replace(edge, state_dir="")


@lru_cache(maxsize=1)
def encoded_union(source: Model, dataset: Dataset, seed: int, num_partitions: int) -> EncodedShard:
    """All clients' training questions; a test question of any client is not among them."""
    shards = read_shards(dataset, seed, num_partitions)
    union = Shard(shards.all_train(), in_memory())
    return EncodedShard.encode(encoder(source), union, shards.questions.skipped, dataset)


def client_data(
    config: RunConfig, source: Model, spec: ClientSpec
) -> tuple[EncodedShard, TokenTable]:
    """One client's questions, and the token embeddings that it holds.

    Raises:
        ConfigError: answers are to be generated, which may need any token, with a shard's rows;
            or model and processor are not as the config says.
        ResourceError, DataError: the data are not.
    """
    return _client_data(source, _without_state(config.edge), config.dataset, config.seed, spec)


def _load_client_data(
    source: Model, edge: Edge, dataset: Dataset, seed: int, spec: ClientSpec
) -> tuple[EncodedShard, TokenTable]:
    if spec.data_path:
        part, skipped = own_shard(spec.data_path, dataset, seed, spec.partition)
    else:
        shards = read_shards(dataset, seed, spec.num_partitions)
        part, skipped = shards.of_client(spec.partition), shards.questions.skipped
    shard = EncodedShard.encode(encoder(source), part, skipped, dataset)
    loaded = _loaded_half(source, edge)
    if edge.vocabulary == "full":
        return shard, loaded.vocabulary
    if any(not (question.options or question.words) for question in shard.test):
        raise ConfigError(
            'edge.vocabulary = "shard": this shard has test questions with a free answer, and a '
            'generated answer may hold any token; use edge.vocabulary = "full", or leave '
            "fill_in_blank out of dataset.tasks"
        )
    return shard, loaded.half.token_table(used_tokens(chain(shard.train, shard.test)))


_client_data = lru_cache(maxsize=CLIENTS_KEPT)(_load_client_data)


def keep_clients(clients: int) -> None:
    """Keep the data of so many clients, for a process that serves them all in turn."""
    global _client_data
    if clients > _client_data.cache_parameters()["maxsize"]:
        _client_data = lru_cache(maxsize=clients)(_load_client_data)


def clear() -> None:
    """Forget everything, as if the process were new."""
    for part in (checkpoint, encoder, _loaded_half, read_shards, encoded_union, _client_data):
        part.cache_clear()
