"""A service without a language model: notes who calls, and fails or waits where it is told to."""

from __future__ import annotations

import threading
from typing import Any

import torch

from fednano_flwr.exchange.protocol import LLMInfo, LLMService


class StandIn(LLMService):
    """Every step has loss 0.5.

    Attributes:
        owners: of the calls that were answered.
        error: is raised by each call.
        gradient: every number of a step's gradient.
        released: a step waits for it.
    """

    def __init__(self, gradient: float = 0.0) -> None:
        self.owners: list[bytes] = []
        self.error: Exception | None = None
        self.gradient = gradient
        self.released = threading.Event()
        self.released.set()

    def describe(self) -> LLMInfo:
        return LLMInfo("stand-in", "f", "", 48, 64, "float32", 100)

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.owners.append(owner)
        if method != "step":
            return None
        self.released.wait(10)
        embeds = arguments[0].embeds
        return 0.5, (torch.full_like(embeds, self.gradient, dtype=torch.float32),)
