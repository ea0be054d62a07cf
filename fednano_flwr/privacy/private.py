"""A strategy that gets only the noised mean of the clients' updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fednano_flwr.config import Privacy
from fednano_flwr.privacy.budget import Budget, epsilon_of
from fednano_flwr.privacy.wrappers import WEIGHT, noised_mean
from fednano_flwr.rounds.compat import KEY_CLIPPING_NORM, KEY_NORM_BIT

RELEASES = "privacy.jsonl"


class Private(Strategy):
    """Central differential privacy for clients, before the strategy that the run config names.

    Flower's wrapper turns all replies into one, their clipped and noised mean. The named strategy
    gets it as a single client's reply, which costs no further privacy.

    Args:
        named: gets one reply a round.
        folder: of the run; a file in it counts the releases.

    Raises:
        ConfigError: the package that the accountant needs is not installed.
    """

    def __init__(self, named: Strategy, privacy: Privacy, folder: Path) -> None:
        self.named = named
        self.privacy = privacy
        self.mean = noised_mean(privacy)
        self.budget = Budget(privacy.noise_multiplier, privacy.delta, folder / RELEASES)
        self._release: dict[str, float] = {}

    @property
    def clip_norm(self) -> float:
        """Of the next round."""
        return float(self.mean.clipping_norm)

    @clip_norm.setter
    def clip_norm(self, value: float) -> None:
        self.mean.clipping_norm = np.float64(value)

    @property
    def notes(self) -> dict[str, float]:
        """Of the last round, with what has been spent so far."""
        own = {"epsilon": self.budget.epsilon, "delta": self.budget.delta, **self._release}
        return {**getattr(self.named, "notes", {}), **own}

    def describe(self, rounds: int) -> str:
        """One line: clipping, noise, and the ε of all rounds.

        Args:
            rounds: still to do, beside the releases that were made.
        """
        p, rounds = self.privacy, rounds + self.budget.releases
        whole = epsilon_of(rounds, p.noise_multiplier, p.delta)
        return (
            f"privacy  {p.dp}: updates clipped to norm {p.clip_norm:g}, noise multiplier "
            f"{p.noise_multiplier:g}; {rounds} round(s) spend ε = {whole:.2f} at δ = {p.delta:g}, "
            "counted without amplification by sampling"
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask as the named strategy does, with the clip norm where clients clip."""
        list(self.mean.configure_train(server_round, arrays, config, grid))  # adds it to config
        if KEY_CLIPPING_NORM in config:
            config[KEY_CLIPPING_NORM] = self.clip_norm
        return self.named.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, average, add noise, and hand the named strategy the result."""
        equal = [_reply(reply.content.array_records["arrays"], _own(reply)) for reply in replies]
        if not equal:
            return None, None
        self.mean.num_sampled_clients = len(equal)
        clients, noise = len(equal), self.mean.noise_multiplier * self.clip_norm / len(equal)
        self._release = {"clients": clients, "clip norm": self.clip_norm, "noise stddev": noise}
        self.budget.spend({"round": server_round, **self._release})
        np.random.seed()  # Flower draws the noise there: anew from the system, whatever was seeded
        with np.errstate(divide="ignore"):  # by the norm of an update of zero, which is not scaled
            mean, _ = self.mean.aggregate_train(server_round, equal)
        if mean is None:
            raise RuntimeError(f"round {server_round}: Flower's {self.mean!r} made no mean")
        return self.named.aggregate_train(server_round, [_reply(mean, {})])

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self.named.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        return self.named.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        self.mean.summary()
        self.named.summary()


def with_privacy(
    named: Strategy, privacy: Privacy, folder: Path, rounds: int, say: Callable[[str], None]
) -> Private:
    """A strategy within differential privacy; prints the ε of `rounds` more rounds.

    Raises:
        ConfigError: the package that the accountant needs is not installed.
    """
    private = Private(named, privacy, folder)
    say(private.describe(rounds))
    return private


def _own(reply: Message) -> dict[str, int]:
    """The one metric of a reply that is used: whether its client had to clip."""
    bit = reply.content.metric_records["metrics"].get(KEY_NORM_BIT)
    return {} if bit is None else {KEY_NORM_BIT: int(bool(bit))}


def _reply(arrays: ArrayRecord, metrics: dict[str, int]) -> Message:
    """A reply of weight 1, without the client's own metrics."""
    alike = {**metrics, WEIGHT: 1, "num-examples": 1, "partition-id": 0}
    content = RecordDict({"arrays": arrays})
    content["metrics"] = MetricRecord({**alike})
    return Message(content, dst_node_id=0, message_type=MessageType.TRAIN)
