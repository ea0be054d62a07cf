"""One client's work in one round, without Flower: load, train or score, and say what it cost."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fednano_flwr.config import ConfigError, Dataset, Edge, RunConfig
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import UNDECODABLE_PICTURE
from fednano_flwr.data.manifest import read_manifest
from fednano_flwr.data.reading import MISSING_PICTURE, describe_skipped
from fednano_flwr.data.registry import load_questions
from fednano_flwr.data.sample import QuestionSet, Sample
from fednano_flwr.data.shard import Shard, Shards, all_shards, load_shard, one_of
from fednano_flwr.data.table import in_memory
from fednano_flwr.edge.adapters import adapter_state, build_adapters
from fednano_flwr.edge.feature_cache import (
    FeatureCache,
    FeatureFolder,
    FeatureLevels,
    Features,
)
from fednano_flwr.edge.feature_keys import model_digest
from fednano_flwr.edge.kept import kept
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.own_adapters import begin, keep
from fednano_flwr.edge.own_state import OwnState
from fednano_flwr.edge.questions import Question, QuestionEncoder, load_encoder, used_tokens
from fednano_flwr.edge.schedule import learning_rate
from fednano_flwr.edge.scoring import Tally, right_answers, tally
from fednano_flwr.edge.training import TrainingPlan, derive_seed, fisher_diagonal, train
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import LLM, LLMService
from fednano_flwr.models.bundle import open_checkpoint
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.token_table import TokenTable
from fednano_flwr.product import WRITINGS, cut_state
from fednano_flwr.resources import cache_folder

# Parts that a process may keep from one message to the next. In deployment each message has a
# process of its own, so nothing may rely on finding them.
SHARDS_KEPT = 8
FEATURES, CLIENTS = "features", "clients"
"""In the cache folder: of image features, and of what clients keep for themselves."""


@dataclass(frozen=True)
class Trained:
    """Result of local training: what is sent of adapters and Fisher diagonals; loss, questions."""

    theta: dict[str, Tensor]
    fisher: dict[str, Tensor] | None
    loss: float
    num_examples: int


@dataclass(frozen=True)
class Scored:
    """Result of scoring the client's own test questions, in all and by kind and subject."""

    correct: int
    num_examples: int
    tally: Tally


@dataclass(frozen=True)
class EncodedShard:
    """A client's readable questions, tokenized, and those left out, counted by reason.

    `skipped` are those of the whole data set, `unreadable` this shard's own.
    """

    train: list[Question]
    test: list[Question]
    skipped: Counter[str]
    unreadable: Counter[str]


@dataclass(frozen=True)
class Place:
    """What a node has of its own; "" and 0 of 1 where it has nothing.

    Attributes:
        partition: which shard of the data is this client's.
        num_partitions: how many there are.
        data_path: folder of this client's shard, written by `fednano partition`.
        bundle_path: folder of an edge bundle, written by `fednano split`.
        rank: of its adapters; 0 where `adapter.ranks` decides.
    """

    partition: int = 0
    num_partitions: int = 1
    data_path: str = ""
    bundle_path: str = ""
    rank: int = 0


class Client:
    """NanoEdge on one partition of the data.

    Args:
        config: of the run.
        place: which partition is this client's, and where its data and model lie.
        run: Flower's id of the run, under which the client keeps what is its own.

    Attributes:
        rank: of its adapters; wider ones that it is sent are cut to it.
        own: what it keeps from round to round.

    Raises:
        ConfigError, ResourceError, DataError: model or data are not as the config says.
    """

    def __init__(self, config: RunConfig, place: Place, run: int = 0) -> None:
        if config.edge.threads:
            torch.set_num_threads(config.edge.threads)
        self.config = config
        self.place = place
        self.partition = place.partition
        self.rank = place.rank or config.adapter.rank_of(place.partition)
        self.own = OwnState(_state_folder(config.edge) / str(run) / f"client-{place.partition}")
        self.source = source = place.bundle_path or config.edge.bundle or config.model.name
        self.shard = _encoded_shard(source, config.dataset, config.seed, place)
        edge = _lasting(config.edge)
        half = _edge_half(source, edge)
        self.half = half
        self.features = FeatureLevels(
            _features_in_memory(source, edge), _features_on_disk(source, edge)
        )
        self.edge = NanoEdge(
            half,
            _token_table(source, config, place),
            build_adapters(half.hidden_size, config.adapter.at(self.rank), config.seed),
            _encoder(source),
            self.features,
        )

    def train(
        self, theta: Mapping[str, Tensor], service: LLMService, server_round: int, work: LocalWork
    ) -> Trained:
        """Train from `theta`, or from what the client has kept, as `work` says.

        Raises:
            ValueError: no readable training question, or `theta` does not fit the adapters.
            ConfigError: the work takes questions that this client cannot read.
        """
        questions = self._questions(work)
        if not questions:
            raise ValueError(f"partition {self.partition} has no readable training question")
        self._begin(theta, work)
        config, llm = self.config, self._llm(service)
        plan = TrainingPlan(
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            learning_rate=learning_rate(config, server_round),
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            proximal_mu=work.proximal_mu,
        )
        seed = derive_seed(config.seed, server_round, self.partition)
        result = train(self.edge, llm, questions, plan, seed, work.fisher == "running")
        diagonal = result.fisher
        if work.fisher in ("pass", "pass-model"):
            drawn_with = None if work.fisher == "pass" else seed
            diagonal = fisher_diagonal(self.edge, llm, questions, config.batch_size, drawn_with)
        keep(self.edge.adapters, work, self.own)
        sent = adapter_state(self.edge.adapters) if work.uploads else {}
        fisher = None if diagonal is None else {name: diagonal[name] for name in sent}
        return Trained(sent, fisher, result.loss, len(questions))

    def _begin(self, theta: Mapping[str, Tensor], work: LocalWork) -> None:
        config, seed = self.config, derive_seed(self.config.seed, self.partition)
        theta = cut_state(theta, self.rank, WRITINGS[config.strategy.factors])
        begin(self.edge.adapters, theta, work, self.own, config.adapter, seed)
        self.edge.adapters.to(self.half.device)  # of an adapter that has been added

    def _questions(self, work: LocalWork) -> Sequence[Question]:
        """What to train on."""
        if work.data == "own":
            return self.shard.train
        if self.place.data_path:
            raise ConfigError(
                f"strategy.name = {self.config.strategy.name!r} trains on all clients' questions, "
                f"and this client has its own shard only (data-path = {self.place.data_path!r}); "
                "it is for runs in which every client can read the data set (dataset.path)"
            )
        if self.config.edge.vocabulary == "shard":
            raise ConfigError(
                'edge.vocabulary = "shard" holds the embeddings of a client\'s own questions, and '
                f"strategy.name = {self.config.strategy.name!r} trains on all clients'; use "
                'edge.vocabulary = "full"'
            )
        config = self.config
        return _encoded_union(
            self.source, config.dataset, config.seed, self.place.num_partitions
        ).train

    def _llm(self, service: LLMService) -> LLM:
        exchange = self.config.exchange
        return EXCHANGES[exchange.kind](service, exchange.labels_at)

    def evaluate(self, theta: Mapping[str, Tensor], service: LLMService, work: LocalWork) -> Scored:
        """Score the client's own test questions, with the adapters of `work` cut to its rank."""
        self._begin(theta, work)
        config, llm = self.config, self._llm(service)
        questions = self.shard.test
        right = right_answers(
            self.edge, llm, questions, config.batch_size, config.max_answer_tokens
        )
        samples = [question.sample for question in questions]
        return Scored(sum(right), len(right), tally(samples, right))


EXCHANGES: Mapping[str, Callable[[LLMService, str], LLM]] = {
    "embeddings": EmbeddingsExchange,
    "lowrank": LowRankExchange,
}


def keep_shards(clients: int) -> None:
    """Keep the shards of so many clients, for a process that serves them all in turn."""
    for part in (_encoded_shard, _token_table):
        part.keep(max(SHARDS_KEPT, clients))


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MiB (all clients that it has served)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_gpu_memory_mb() -> float:
    """Peak memory of this process's tensors on its current GPU in MiB; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def _lasting(edge: Edge) -> Edge:
    """What model and features depend on: not where this run's client keeps its state."""
    return replace(edge, state_dir="")


def _state_folder(edge: Edge) -> Path:
    return Path(edge.state_dir).expanduser() if edge.state_dir else cache_folder() / CLIENTS


@lru_cache(maxsize=1)
def _encoder(source: str) -> QuestionEncoder:
    return load_encoder(open_checkpoint(source))


@lru_cache(maxsize=1)
def _edge_half(source: str, edge: Edge) -> EdgeHalf:
    return load_edge_half(source, edge.device, edge.dtype)


@kept(SHARDS_KEPT)
def _token_table(source: str, config: RunConfig, place: Place) -> TokenTable:
    """The embeddings that this client's questions need, or all of them.

    Raises:
        ConfigError: answers are to be generated, which may need any token, with a shard's rows.
    """
    edge = _lasting(config.edge)
    half = _edge_half(source, edge)
    if config.edge.vocabulary == "full":
        return _full_table(source, edge)
    questions = _encoded_shard(source, config.dataset, config.seed, place)
    if any(not question.options for question in questions.test):
        raise ConfigError(
            'edge.vocabulary = "shard": this shard has test questions with a free answer, and a '
            'generated answer may hold any token; use edge.vocabulary = "full", or leave '
            "fill_in_blank out of dataset.tasks"
        )
    return half.token_table(used_tokens([*questions.train, *questions.test]))


@lru_cache(maxsize=1)
def _full_table(source: str, edge: Edge) -> TokenTable:
    """One table, shared by the clients of a process."""
    return _edge_half(source, edge).token_table()


@lru_cache(maxsize=1)
def _question_set(dataset: Dataset) -> QuestionSet:
    return load_questions(dataset)


@lru_cache(maxsize=1)
def _shards(dataset: Dataset, seed: int, num_partitions: int) -> Shards:
    """The whole split: dealing it anew for each client would cost clients × questions."""
    return all_shards(_question_set(dataset), dataset, seed, num_partitions)


@kept(SHARDS_KEPT)
def _encoded_shard(source: str, dataset: Dataset, seed: int, place: Place) -> EncodedShard:
    if place.data_path:
        part = load_shard(Path(place.data_path))
        skipped = Counter(read_manifest(Path(place.data_path).expanduser())["skipped"])
    else:
        part = one_of(_shards(dataset, seed, place.num_partitions), place.partition)
        skipped = _question_set(dataset).skipped
    return _encode(_encoder(source), part, skipped, dataset.max_skipped)


@lru_cache(maxsize=1)
def _encoded_union(source: str, dataset: Dataset, seed: int, num_partitions: int) -> EncodedShard:
    """All clients' training questions; a test question of any client is not among them."""
    shards, skipped = _shards(dataset, seed, num_partitions), _question_set(dataset).skipped
    union = Shard(shards.all_train(), in_memory())
    return _encode(_encoder(source), union, skipped, dataset.max_skipped)


def _encode(
    encoder: QuestionEncoder, part: Shard, skipped: Counter[str], max_skipped: float
) -> EncodedShard:
    """Tokenize a shard; a picture that cannot be read leaves its question out.

    Raises:
        DataError: more than `max_skipped` of the shard's questions cannot be read.
    """
    unreadable: Counter[str] = Counter()
    train, test = (_readable(encoder, samples, unreadable) for samples in (part.train, part.test))
    count = len(part.train) + len(part.test)
    if unreadable.total() > max_skipped * count:
        raise DataError(
            f"{unreadable.total()} of this client's {count} questions cannot be read "
            f"({describe_skipped(unreadable)}); dataset.max-skipped allows {max_skipped:.0%}"
        )
    return EncodedShard(train, test, skipped, unreadable)


def _readable(
    encoder: QuestionEncoder, samples: Iterable[Sample], unreadable: Counter[str]
) -> list[Question]:
    questions = []
    for sample in samples:
        try:
            questions.append(encoder.encode(sample))
        except FileNotFoundError:
            unreadable[MISSING_PICTURE] += 1
        except DataError:
            unreadable[UNDECODABLE_PICTURE] += 1
    return questions


@lru_cache(maxsize=1)
def _features_in_memory(source: str, edge: Edge) -> FeatureCache:
    """Shared by the clients of a process."""
    return FeatureCache(edge.feature_cache_mb * 2**20)


@lru_cache(maxsize=1)
def _features_on_disk(source: str, edge: Edge) -> Features:
    """Shared by all processes of a machine; one that holds nothing where they are turned off."""
    if not edge.feature_disk_mb:
        return FeatureCache(0)
    folder = Path(edge.feature_dir).expanduser() if edge.feature_dir else cache_folder() / FEATURES
    half = _edge_half(source, edge)
    model = model_digest(half, _encoder(source))
    return FeatureFolder(folder, edge.feature_disk_mb * 2**20, model, half.device)
