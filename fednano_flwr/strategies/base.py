"""The base class of this project's strategies, on top of Flower's FedAvg."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fednano_flwr.adapters.product import Factors, state_of
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.config import Strategy
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.rounds.records import from_arrays, to_arrays, to_update
from fednano_flwr.strategies.merge import weighted_mean


class AdapterStrategy(FedAvg):
    """Merges the clients' adapters; a subclass says how, and which Fisher estimate it needs.

    It does not sample clients: its grid has only the sampled nodes.

    Attributes:
        fisher: "none", or the estimate it needs, as `strategy.fisher-estimate` names them.
        notes: figures of the last merge, by name; written to metrics.jsonl.
        seed: the run's, for what a merge draws.
        map: what the merged model has beside the adapters, at the host (adapters/host_map.py).
    """

    fisher: str = "none"
    trains: ClassVar[str] = "sampled"
    """Who trains in a round: the clients that are "sampled", or "one" on behalf of all."""
    merges_ranks: ClassVar[bool] = False
    """Whether clients may send adapters of a lower rank than they were sent."""
    keeps_map: ClassVar[bool] = False
    """Whether a part of the merged model is `map`."""
    begins_anew: ClassVar[bool] = False
    """Whether a merge's factors have nothing to do with those before it."""
    remembers: ClassVar[tuple[str, ...]] = ()
    """Attributes that last between rounds: arrays and numbers, saved in checkpoints."""
    reads: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Strategy))
    """Which fields of the config it uses; changes of others are refused."""
    without_privacy: ClassVar[str] = (
        "it may compare single updates, and of these only their noised mean may be seen"
    )
    """Why the noised mean of differential privacy cannot stand for the updates; "" if it can."""

    def __init__(self, config: Strategy) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.config = config
        if self.fisher != "none" and config.fisher_estimate != "auto":
            self.fisher = config.fisher_estimate
        self.notes: dict[str, float] = {}
        self.round = self.seed = 0
        self.sent: State = {}
        self.map: State = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all nodes of the grid, and remember the round and what they start from."""
        self.round, self.sent = server_round, from_arrays(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def local_work(self) -> LocalWork:
        """What the clients are to do."""
        return LocalWork(fisher=self.fisher)

    def factor(self, server_round: int) -> str:
        """Which factor of W = B A the clients train in a round: "both", or "A" or "B" alone."""
        return "both"

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the good replies, in the order of their partitions; no metrics are made.

        Replies are checked one by one where they arrive.
        """
        good, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        if not good:
            return None, None
        updates = sorted(map(to_update, good), key=lambda update: update.partition)
        self.notes.clear()
        return to_arrays(self.merge(updates)), None

    def merge(self, updates: Sequence[Update]) -> State:
        """The new adapters, from one update a client."""
        raise NotImplementedError

    def keep(self, map: Mapping[str, Factors]) -> None:
        """Set the map, and note its rank at each site."""
        self.map = state_of(map)
        self.notes |= {f"rank of map {name}": len(factors.a) for name, factors in map.items()}

    def mean(self, updates: Sequence[Update]) -> State:
        """The weighted mean of every parameter."""
        weights = self.weights(updates)
        return {
            name: weighted_mean([update.theta[name] for update in updates], weights)
            for name in updates[0].theta
        }

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """One weight a client: its number of questions, or 1 where `strategy.weight-by` says so."""
        if self.config.weight_by == "equal":
            return [1.0] * len(updates)
        return [float(update.num_examples) for update in updates]

    def shares(self, updates: Sequence[Update]) -> list[float]:
        """The weights p_k = w_k / Σ w, of sum 1."""
        weights = self.weights(updates)
        return [weight / sum(weights) for weight in weights]


def local_work_of(strategy: FlowerStrategy, server_round: int = 1) -> LocalWork:
    """What a strategy asks of the clients in a round; Flower's ask for trained adapters, no more.

    Of one within differential privacy, what the named strategy asks.
    """
    strategy = getattr(strategy, "named", strategy)
    if not isinstance(strategy, AdapterStrategy):
        return LocalWork()
    return replace(strategy.local_work(), factor=strategy.factor(server_round))


def trains_one(strategy: FlowerStrategy) -> bool:
    """Whether one client trains on behalf of all."""
    return isinstance(strategy, AdapterStrategy) and strategy.trains == "one"
