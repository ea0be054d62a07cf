"""One client's work in one round, without Flower: load, train or score, and say what it cost."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fednano_flwr.config import Dataset, Edge, Model, RunConfig
from fednano_flwr.data.images import drop_unreadable
from fednano_flwr.data.registry import load_questions
from fednano_flwr.data.sample import QuestionSet
from fednano_flwr.data.shard import shard
from fednano_flwr.edge.adapters import (
    adapter_state,
    build_adapters,
    load_adapter_state,
)
from fednano_flwr.edge.nano_edge import FeatureCache, NanoEdge
from fednano_flwr.edge.questions import Question, QuestionEncoder, load_encoder
from fednano_flwr.edge.training import (
    TrainingPlan,
    derive_seed,
    fisher_diagonal,
    right_answers,
    train,
)
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.protocol import LLMService
from fednano_flwr.models.checkpoint import Checkpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.resources import resolve

# Parts that a process may keep from one message to the next. In deployment each message has a
# process of its own, so nothing may rely on finding them.
SHARDS_KEPT = 8


@dataclass(frozen=True)
class Trained:
    """Result of local training: adapters, Fisher diagonals where asked for, loss, questions."""

    theta: dict[str, Tensor]
    fisher: dict[str, Tensor] | None
    loss: float
    num_examples: int


@dataclass(frozen=True)
class Scored:
    """Result of scoring the client's own test questions."""

    correct: int
    num_examples: int


@dataclass(frozen=True)
class EncodedShard:
    """A client's readable questions, tokenized, and its unreadable ones counted by reason."""

    train: list[Question]
    test: list[Question]
    unreadable: Counter[str]


class Client:
    """NanoEdge on one partition of the data.

    Args:
        config: of the run.
        partition: which shard is this client's, 0 to `num_partitions` - 1.

    Raises:
        ConfigError, ResourceError, DataError: model or data are not as the config says.
    """

    def __init__(self, config: RunConfig, partition: int, num_partitions: int) -> None:
        if config.edge.threads:
            torch.set_num_threads(config.edge.threads)
        self.config = config
        self.partition = partition
        self.shard = _encoded_shard(
            config.model, config.dataset, config.seed, partition, num_partitions
        )
        half = _edge_half(config.model, config.edge)
        self.fingerprint = half.fingerprint
        self.hidden_size = half.hidden_size
        self.edge = NanoEdge(
            half,
            build_adapters(half.hidden_size, config.adapter, config.seed),
            _encoder(config.model),
            _feature_cache(config.model, config.dataset, config.edge),
        )

    @property
    def skipped(self) -> dict[str, int]:
        """Questions left out, by reason: of the data set, and unreadable ones of this shard."""
        return dict(_question_set(self.config.dataset).skipped + self.shard.unreadable)

    def train(
        self, theta: Mapping[str, Tensor], service: LLMService, server_round: int, fisher: str
    ) -> Trained:
        """Train from `theta` and, where `fisher` is "pass" or "running", estimate its diagonal.

        Raises:
            ValueError: no readable training question, or `theta` does not fit the adapters.
        """
        if not self.shard.train:
            raise ValueError(f"partition {self.partition} has no readable training question")
        load_adapter_state(self.edge.adapters, theta)
        config, llm = self.config, EmbeddingsExchange(service)
        plan = TrainingPlan(
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )
        seed = derive_seed(config.seed, server_round, self.partition)
        result = train(self.edge, llm, self.shard.train, plan, seed, fisher == "running")
        diagonal = result.fisher
        if fisher == "pass":
            diagonal = fisher_diagonal(self.edge, llm, self.shard.train, config.batch_size)
        return Trained(
            adapter_state(self.edge.adapters), diagonal, result.loss, len(self.shard.train)
        )

    def evaluate(self, theta: Mapping[str, Tensor], service: LLMService) -> Scored:
        """Score the client's own test questions by their option letters."""
        load_adapter_state(self.edge.adapters, theta)
        llm = EmbeddingsExchange(service)
        right = right_answers(self.edge, llm, self.shard.test, self.config.batch_size)
        return Scored(sum(right), len(right))


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MiB (all clients that it has served)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_gpu_memory_mb() -> float:
    """Peak memory of this process's tensors on its current GPU in MiB; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


@lru_cache(maxsize=1)
def _encoder(model: Model) -> QuestionEncoder:
    return load_encoder(str(Checkpoint(model.name).folder))


@lru_cache(maxsize=1)
def _edge_half(model: Model, edge: Edge) -> EdgeHalf:
    return load_edge_half(model.name, edge.device, edge.dtype)


@lru_cache(maxsize=1)
def _question_set(dataset: Dataset) -> QuestionSet:
    return load_questions(dataset.name, resolve("dataset.path", dataset.path))


@lru_cache(maxsize=SHARDS_KEPT)
def _encoded_shard(
    model: Model, dataset: Dataset, seed: int, partition: int, num_partitions: int
) -> EncodedShard:
    part = shard(
        _question_set(dataset),
        partition,
        num_partitions,
        alpha=dataset.alpha,
        seed=seed,
        min_partition_size=dataset.min_partition_size,
    )
    train, unreadable_train = drop_unreadable(part.train)
    test, unreadable_test = drop_unreadable(part.test)
    encode = _encoder(model).encode
    return EncodedShard(
        [encode(sample) for sample in train],
        [encode(sample) for sample in test],
        unreadable_train + unreadable_test,
    )


@lru_cache(maxsize=1)
def _feature_cache(model: Model, dataset: Dataset, edge: Edge) -> FeatureCache:
    """One cache for what all three determine, shared by the clients of a process."""
    return FeatureCache(edge.feature_cache_mb * 2**20)
