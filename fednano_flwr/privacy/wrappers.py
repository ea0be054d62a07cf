"""Flower's wrappers for central differential privacy, around the plain mean of all updates.

The adaptive ones (flwr 1.42) depart from Andrew et al. ("Differentially Private Learning with
Adaptive Clipping", NeurIPS 2021) in two places, which are corrected here: they lower the clip norm
where too many updates are clipped, so that it runs away from its target, and they draw a round's
noise by the next round's clip norm, which may be smaller than the one that bounded its updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from fednano_flwr.config import Privacy
from fednano_flwr.strategies.registry import ALL_NODES

WEIGHT = "weight"
"""The metric that weights Flower's mean: 1 for each client, whatever it reports."""

if TYPE_CHECKING:
    _Base = DifferentialPrivacyServerSideAdaptiveClipping
else:
    _Base = object

Wrapper = (
    DifferentialPrivacyClientSideAdaptiveClipping
    | DifferentialPrivacyClientSideFixedClipping
    | DifferentialPrivacyServerSideAdaptiveClipping
    | DifferentialPrivacyServerSideFixedClipping
)


class _Adaptive(_Base):
    """The clip norm approaches its target, and changes after the round's noise was drawn."""

    def _geometric_update(self, clipped_fraction: float) -> None:
        off = clipped_fraction - self.target_clipped_quantile
        self._next_norm = self.clipping_norm * math.exp(self.clip_norm_lr * off)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = super().aggregate_train(server_round, replies)
        self.clipping_norm = self._next_norm
        return found


class ClientAdaptive(_Adaptive, DifferentialPrivacyClientSideAdaptiveClipping):  # type: ignore[misc]
    """Clients clip; the server's norm follows."""


class ServerAdaptive(_Adaptive, DifferentialPrivacyServerSideAdaptiveClipping):
    """The server clips; its norm follows."""


def noised_mean(privacy: Privacy) -> Wrapper:
    """The mean of all updates, each of the same weight, clipped and noised as the config says.

    How many there are is said before each aggregation (`num_sampled_clients`).
    """
    mean = FedAvg(
        **ALL_NODES, weighted_by_key=WEIGHT, train_metrics_aggr_fn=lambda *_: MetricRecord()
    )
    # As numpy's number, since Flower divides by an update's norm, which may be 0.
    norm = np.float64(privacy.clip_norm)
    if not privacy.adaptive:
        fixed = (
            DifferentialPrivacyClientSideFixedClipping
            if privacy.at_client
            else DifferentialPrivacyServerSideFixedClipping
        )
        return fixed(mean, privacy.noise_multiplier, norm, num_sampled_clients=1)
    adaptive = ClientAdaptive if privacy.at_client else ServerAdaptive
    return adaptive(
        mean,
        privacy.noise_multiplier,
        num_sampled_clients=1,
        initial_clipping_norm=norm,
        target_clipped_quantile=privacy.target_quantile,
        clip_norm_lr=privacy.clip_rate,
        clipped_count_stddev=privacy.count_noise,
    )
