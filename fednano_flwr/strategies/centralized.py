"""Centralized training: what federation would reach if the data could be in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.strategies.fedavg import AdapterFedAvg


class Centralized(AdapterFedAvg):
    """One client trains on all clients' training questions; each scores its own test questions.

    A round passes over them as often as the clients together would. Only where a client can read
    the whole data set, as in simulation.
    """

    trains: ClassVar[str] = "one"
    without_privacy: ClassVar[str] = (
        "one client trains on all questions, so that clipping its update protects no one"
    )

    def local_work(self) -> LocalWork:
        return replace(super().local_work(), data="all")
