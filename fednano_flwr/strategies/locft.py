"""Local fine-tuning: every client by itself, the line that federation has to beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from flwr.app import ArrayRecord, Message, MetricRecord

from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.strategies.base import AdapterStrategy


class LocFT(AdapterStrategy):
    """Nothing is merged: each client goes on from its own adapters of the round before.

    They start from the server's, stay on the client's disk, and are what it scores; the server's
    never change.
    """

    without_privacy: ClassVar[str] = "its clients send no update"
    reads: ClassVar[tuple[str, ...]] = ()

    def local_work(self) -> LocalWork:
        return replace(super().local_work(), adapters="own")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """No adapters: none came."""
        return None, None
