"""What a client works with, loaded once a process: shards, the frozen half, features.

In deployment each message has a process of its own, so nothing may rely on finding any of it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.base.resources import cache_folder
from fednano_flwr.config import ConfigError, Dataset, Edge, Model, RunConfig
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.manifest import read_manifest
from fednano_flwr.data.shard import Shard, load_shard, read_shards
from fednano_flwr.data.table import in_memory
from fednano_flwr.edge.feature_cache import FeatureCache, FeatureFolder, Features
from fednano_flwr.edge.feature_keys import model_digest
from fednano_flwr.edge.process_cache import kept
from fednano_flwr.edge.questions import (
    Limits,
    Question,
    QuestionEncoder,
    encode_all,
    load_encoder,
    used_tokens,
)
from fednano_flwr.models.bundle import open_checkpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.processor import has_processor
from fednano_flwr.models.source import locate
from fednano_flwr.models.token_table import TokenTable

SHARDS_KEPT = 8
FEATURES, CLIENTS = "features", "clients"
"""In the cache folder: of image features, and of what clients keep for themselves."""


@dataclass(frozen=True)
class EncodedShard:
    """A client's questions, tokenized, and those that were left out.

    Attributes:
        skipped: those of the whole data set, counted by reason.
        left_out: this shard's own, id and reason of each.
    """

    train: list[Question]
    test: list[Question]
    skipped: Counter[str]
    left_out: list[tuple[str, str]]

    def within(self, limits: Limits, max_skipped: float) -> EncodedShard:
        """The same without the questions that the host would refuse.

        Raises:
            DataError: more than `max_skipped` of the shard's questions are left out.
        """
        refused = [
            (question.sample.uid, reason)
            for question in (*self.train, *self.test)
            if (reason := limits.refusal(question))
        ]
        if not refused:
            return self
        train, test = (
            [question for question in part if not limits.refusal(question)]
            for part in (self.train, self.test)
        )
        return _checked(
            EncodedShard(train, test, self.skipped, [*self.left_out, *refused]), max_skipped
        )


@dataclass(frozen=True)
class Place:
    """What a node has of its own; "" and 0 of 1 where it has nothing.

    Attributes:
        partition: which shard of the data is this client's.
        num_partitions: how many there are.
        data_path: folder of this client's shard, written by `fednano partition`.
        edge_path: folder of an edge bundle, written by `fednano split`.
        rank: of its adapters; 0 where `adapter.ranks` decides.
    """

    partition: int = 0
    num_partitions: int = 1
    data_path: str = ""
    edge_path: str = ""
    rank: int = 0


def keep_shards(clients: int) -> None:
    """Keep the shards of so many clients, for a process that serves them all in turn."""
    for part in (encoded_shard, token_table):
        part.keep(max(SHARDS_KEPT, clients))


def source_of(config: RunConfig, edge_path: str = "") -> Model:
    """What a client's half and its processor are read from.

    Args:
        edge_path: the node's own edge bundle.
    """
    bundle = edge_path or config.edge.bundle
    return Model(bundle) if bundle else config.model


def check_processor_here(model: Model) -> bool:
    """Refuse a model whose processor does not fit it; returns whether it has one here.

    Raises:
        ConfigError: there is no such model, or its processor, tokenizer and config do not fit.
    """
    here = has_processor(locate(model.name, model.revision)[0])
    if here:
        encoder(model)
    return here


def lasting(edge: Edge) -> Edge:
    """What model and features depend on: not where this run's client keeps its state."""
    return replace(edge, state_dir="")


def state_folder(edge: Edge) -> Path:
    return Path(edge.state_dir).expanduser() if edge.state_dir else cache_folder() / CLIENTS


@lru_cache(maxsize=2)  # a bundle's and the model's of a simulation
def encoder(source: Model) -> QuestionEncoder:
    return load_encoder(open_checkpoint(source.name, source.revision))


@lru_cache(maxsize=1)
def edge_half(source: Model, edge: Edge) -> EdgeHalf:
    return load_edge_half(source.name, edge.device, edge.dtype, source.revision)


@kept(SHARDS_KEPT)
def token_table(source: Model, config: RunConfig, place: Place) -> TokenTable:
    """The embeddings that this client's questions need, or all of them.

    Raises:
        ConfigError: answers are to be generated, which may need any token, with a shard's rows.
    """
    edge = lasting(config.edge)
    half = edge_half(source, edge)
    if config.edge.vocabulary == "full":
        return _full_table(source, edge)
    questions = encoded_shard(source, config.dataset, config.seed, place)
    if any(not question.options for question in questions.test):
        raise ConfigError(
            'edge.vocabulary = "shard": this shard has test questions with a free answer, and a '
            'generated answer may hold any token; use edge.vocabulary = "full", or leave '
            "fill_in_blank out of dataset.tasks"
        )
    return half.token_table(used_tokens([*questions.train, *questions.test]))


@lru_cache(maxsize=1)
def _full_table(source: Model, edge: Edge) -> TokenTable:
    """One table, shared by the clients of a process."""
    return edge_half(source, edge).token_table()


@kept(SHARDS_KEPT)
def encoded_shard(source: Model, dataset: Dataset, seed: int, place: Place) -> EncodedShard:
    if place.data_path:
        part = load_shard(Path(place.data_path))
        skipped = Counter(read_manifest(Path(place.data_path).expanduser())["skipped"])
    else:
        shards = read_shards(dataset, seed, place.num_partitions)
        part, skipped = shards.of_client(place.partition), shards.skipped
    return _encode(encoder(source), part, skipped, dataset.max_skipped)


@lru_cache(maxsize=1)
def encoded_union(source: Model, dataset: Dataset, seed: int, num_partitions: int) -> EncodedShard:
    """All clients' training questions; a test question of any client is not among them."""
    shards = read_shards(dataset, seed, num_partitions)
    union = Shard(shards.all_train(), in_memory())
    return _encode(encoder(source), union, shards.skipped, dataset.max_skipped)


def _encode(
    encoder: QuestionEncoder, part: Shard, skipped: Counter[str], max_skipped: float
) -> EncodedShard:
    """Tokenize a shard; a question that the model cannot take is left out.

    Raises:
        DataError: more than `max_skipped` of the shard's questions are left out.
    """
    train, left_out = encode_all(encoder, part.train)
    test, more = encode_all(encoder, part.test)
    return _checked(EncodedShard(train, test, skipped, [*left_out, *more]), max_skipped)


def _checked(shard: EncodedShard, max_skipped: float) -> EncodedShard:
    """The shard, of which a share of `max_skipped`, rounded up, may be left out."""
    left_out = shard.left_out
    count = len(shard.train) + len(shard.test) + len(left_out)
    if len(left_out) > math.ceil(round(max_skipped * count, 6)):
        reasons = "; ".join(
            f"{len(ids)}: {reason} ({first_few(ids)})" for ids, reason in by_reason(left_out)
        )
        raise DataError(
            f"{len(left_out)} of this client's {count} questions cannot be used: {reasons}; "
            f"dataset.max-skipped allows {max_skipped:.0%}"
        )
    return shard


@lru_cache(maxsize=1)
def features_in_memory(source: Model, edge: Edge) -> FeatureCache:
    """Shared by the clients of a process."""
    return FeatureCache(edge.feature_cache_mb * 2**20)


@lru_cache(maxsize=1)
def features_on_disk(source: Model, edge: Edge) -> Features:
    """Shared by all processes of a machine; one that holds nothing where they are turned off."""
    if not edge.feature_disk_mb:
        return FeatureCache(0)
    folder = Path(edge.feature_dir).expanduser() if edge.feature_dir else cache_folder() / FEATURES
    half = edge_half(source, edge)
    model = model_digest(half, encoder(source))
    return FeatureFolder(folder, edge.feature_disk_mb * 2**20, model, half.device)
