"""One client's work in one round, without Flower: load, train or score, and say what it cost."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano_flwr.adapters.product import FACTORIZATIONS, cut_state, trained_part
from fednano_flwr.adapters.site import adapter_state, build_adapters, train_only
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.config.lineage import PreviousRun
from fednano_flwr.data.metrics import find_metric
from fednano_flwr.edge import process_cache
from fednano_flwr.edge.feature_cache import FeatureLevels
from fednano_flwr.edge.local_state import LocalState, load_adapters, save_adapters
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import NO_LIMITS, Limits, Question
from fednano_flwr.edge.scoring import ALL, Tally, score_questions, tally
from fednano_flwr.edge.shard import ClientSpec
from fednano_flwr.edge.training import TrainingPlan, fisher_diagonal, train
from fednano_flwr.exchange.errors import HostRefusedError, SessionGoneError
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import LLMInfo, LLMService
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.models.device import threads

log = logging.getLogger(__name__)
TRIES = 4
"""Of a round's training, where the host loses its session."""


@dataclass(frozen=True)
class Trained:
    """Result of local training: what is sent of adapters and Fisher diagonals; loss, questions.

    Attributes:
        session: number of the host's, whose result is at the server; 0 where there was none.
    """

    theta: dict[str, Tensor]
    fisher: dict[str, Tensor] | None
    loss: float
    num_examples: int
    session: int = 0


@dataclass(frozen=True)
class Scored:
    """Result of scoring the client's own test questions, in all and by kind and subject.

    Attributes:
        score: sum of the questions' scores, each from 0 to 1.
        loss: Σ −log p over the tokens of the right answers.
        tokens: their number.
    """

    score: float
    loss: float
    tokens: int
    num_examples: int
    tally: Tally


class Client:
    """NanoEdge on one partition of the data.

    Args:
        config: of the run.
        spec: which partition is this client's, and where its data and model lie.
        run: Flower's id of the run, under which the client keeps what is its own.
        earlier: runs that this one continues.

    Attributes:
        rank: of its adapters; wider ones that it is sent are cut to it.
        shard: its questions; once a host is known, without those that the host refuses.
        limits: of the host, once it is known.

    Raises:
        ConfigError, ResourceError, DataError: model or data are not as the config says.
    """

    def __init__(
        self, config: RunConfig, spec: ClientSpec, run: int = 0, earlier: Sequence[PreviousRun] = ()
    ) -> None:
        self.config = config
        self.spec = spec
        self.partition = spec.partition
        self.rank = spec.rank or config.adapter.rank_of(spec.partition)
        self.limits = NO_LIMITS
        self._run, self._earlier = str(run), earlier
        self.source = process_cache.source_of(config, spec.edge_path)
        with threads(config.edge.threads):
            self.shard, tokens = process_cache.client_data(config, self.source, spec)
            loaded = process_cache.loaded_half(self.source, config.edge)
            self.half = loaded.half
            self.features = FeatureLevels(loaded.memory, loaded.disk)
            adapter = config.adapter.at(self.rank)
            adapters = build_adapters(
                self.half.hidden_size, adapter, config.seed, sites=self.half.sites
            )
            encoder = process_cache.encoder(self.source)
            names = EXCHANGES[config.exchange.kind].inputs.HAS_HIDDEN
            at_host = config.exchange.connector_at_host
            self.edge = NanoEdge(
                self.half, tokens, adapters, encoder, self.features, names, at_host
            )

    def keep_within(self, info: LLMInfo) -> None:
        """Leave out the questions that a host would refuse, in training and in scoring.

        Raises:
            DataError: more are left out than `dataset.max-skipped` allows.
            ConfigError: the host's connector is not this client's.
        """
        at_host = self.config.exchange.connector_at_host
        if at_host and info.connector != self.half.connector_digest:
            raise ConfigError(
                'exchange.connector-at = "server": the LLM host has another connector than this '
                "client: both need one version of the checkpoint, in one dtype (edge.dtype, and "
                "that of an edge bundle)"
            )
        longest, answer = self.half.checkpoint.longest, self.config.max_answer_tokens
        self.limits = Limits(info.max_tokens, longest, answer)
        self.shard = self.shard.within(self.limits)

    def train(
        self, theta: Mapping[str, Tensor], service: LLMService, server_round: int, work: LocalWork
    ) -> Trained:
        """Train from `theta`, or from the client's own adapters, as `work` says.

        Raises:
            ValueError: no usable training question, or `theta` does not fit the adapters.
            ConfigError: the work takes questions that this client cannot read.
            DataError: more questions are left out than `dataset.max-skipped` allows.
        """
        with threads(self.config.edge.threads):
            for _ in range(TRIES):
                try:
                    return self._train(theta, service, server_round, work)
                except SessionGoneError as error:
                    log.warning(
                        "client %d begins round %d anew: %s", self.partition, server_round, error
                    )
        raise HostRefusedError(
            f"the LLM host lost this client's session {TRIES} times in one round"
        )

    def _train(
        self, theta: Mapping[str, Tensor], service: LLMService, server_round: int, work: LocalWork
    ) -> Trained:
        config = self.config
        self._check_data(work)
        self.keep_within(service.describe())
        questions = self._questions(work)
        if not questions:
            raise ValueError(f"partition {self.partition} has no usable training question")
        self._start(theta, work, server_round)
        train_only(self.edge.adapters, work.factor)
        llm = exchange_of(config, service)
        plan = TrainingPlan.of(config, server_round, self.limits, work.proximal_mu)
        own = (config.seed, server_round, self.partition)
        seed = derive_seed(Purpose.TRAINING, *own)
        running, last = work.fisher.startswith("running"), work.fisher == "running-last"
        turns = llm.begin() if config.adapter.at_llm else None
        result = train(self.edge, llm, questions, plan, seed, running, last, turns)
        fisher = result.fisher
        if work.fisher.startswith("pass"):
            drawing = derive_seed(Purpose.DRAWN_ANSWERS, *own)
            drawn_with = drawing if work.fisher == "pass-model" else None
            size = 1 if work.fisher == "pass-samples" else config.batch_size
            fisher = fisher_diagonal(
                self.edge, llm, questions, size, drawn_with, self.limits, turns
            )
        session = llm.end() if turns else 0
        save_adapters(self.edge.adapters, work, self.local_state(server_round))
        sent = trained_part(adapter_state(self.edge.adapters), work.factor) if work.uploads else {}
        if fisher is not None:
            fisher = {name: fisher[name] for name in sent}
        return Trained(sent, fisher, result.loss, len(questions), session)

    def evaluate(
        self, theta: Mapping[str, Tensor], service: LLMService, server_round: int, work: LocalWork
    ) -> Scored:
        """Score the client's own test questions, with the adapters of `work` cut to its rank.

        Raises:
            DataError: more questions are left out than `dataset.max-skipped` allows.
        """
        config = self.config
        with threads(config.edge.threads):
            self.keep_within(service.describe())
            self._start(theta, work, server_round + 1)  # with what this round's training has left
            llm, questions = exchange_of(config, service), self.shard.test
            metric = find_metric(config.dataset.metric).score
            batch, tokens = config.batch_size, config.max_answer_tokens
            scores = score_questions(self.edge, llm, questions, batch, metric, tokens, self.limits)
        counts = tally((q.sample for q in questions), [score.value for score in scores])
        return Scored(
            score=counts.get(ALL, [0.0])[0],
            loss=sum(score.loss for score in scores),
            tokens=sum(score.tokens for score in scores),
            num_examples=len(scores),
            tally=counts,
        )

    def local_state(self, server_round: int) -> LocalState:
        """What the client has stored from round to round, as training in this round finds it."""
        folder, client = process_cache.state_folder(self.config.edge), f"client-{self.partition}"
        earlier = [(folder / one.run / client, one.last_round) for one in self._earlier]
        # One more than checkpoints: a client may have trained for the round after the last of them.
        most = self.config.run.keep_checkpoints + 1
        return LocalState(folder / self._run / client, server_round, earlier, most)

    def _start(self, theta: Mapping[str, Tensor], work: LocalWork, server_round: int) -> None:
        """Set the adapters to what training in a round starts from."""
        config = self.config
        seed = derive_seed(Purpose.LOCAL_ADAPTER, config.seed, self.partition)
        theta = cut_state(theta, self.rank, FACTORIZATIONS[config.strategy.factors])
        state = self.local_state(server_round)
        load_adapters(self.edge.adapters, theta, work, state, config.adapter, seed)
        if work.adapters != "global":  # what a client keeps to itself is not for the host to hold
            self.edge.names_factors = False
        self.edge.adapters.to(self.half.device)  # of an adapter that has been added

    def _check_data(self, work: LocalWork) -> None:
        """Refuse work on all clients' questions where this client has its own shard only."""
        if work.data == "all" and self.spec.data_path:
            raise ConfigError(
                f"strategy.name = {self.config.strategy.name!r} trains on all clients' questions, "
                f"and this client has its own shard only (data-path = {self.spec.data_path!r}); "
                "every client has to read the data set (dataset.path)"
            )

    def _questions(self, work: LocalWork) -> Sequence[Question]:
        """What to train on."""
        if work.data == "own":
            return self.shard.train
        dataset, seed, count = self.config.dataset, self.config.seed, self.spec.num_partitions
        union = process_cache.encoded_union(self.source, dataset, seed, count)
        return union.within(self.limits).train


def exchange_of(config: RunConfig, service: LLMService) -> Exchange:
    """The exchange that a run config asks for, on top of a service."""
    return EXCHANGES[config.exchange.kind](service, config.exchange.labels_at)


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MiB (all clients that it has served)."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def peak_gpu_memory_mb() -> float:
    """Peak memory of this process's tensors on its current GPU in MiB; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
