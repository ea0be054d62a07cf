"""FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.strategies.fedavg import AdapterFedAvg


class FedProx(AdapterFedAvg):
    """FedAvg of clients whose training is held to the round's start.

    A client minimises loss + (μ / 2) ‖θ − θ_round‖², μ = `strategy.proximal-mu`. All clients do
    all local epochs; the paper's clients that stop early have no part here.
    """

    reads: ClassVar[tuple[str, ...]] = (*AdapterFedAvg.reads, "proximal_mu")

    def local_work(self) -> LocalWork:
        return replace(super().local_work(), proximal_mu=self.config.proximal_mu)
