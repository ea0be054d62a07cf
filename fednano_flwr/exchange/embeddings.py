"""The plain exchange: embeddings go up, their gradient comes down (2·N·d numbers a step)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.exchange.generation import Generated, NewToken
from fednano_flwr.exchange.labels import Step, stepper
from fednano_flwr.exchange.protocol import AdaptedBatch, LLMInputs, LLMService


class EmbeddingsExchange:
    """An `LLM` on top of any `LLMService`.

    Args:
        labels_at: "server" or "client".
        noise: makes of the rows (N, d) what is sent for them; None sends them as they are.
    """

    def __init__(
        self,
        service: LLMService,
        labels_at: str = "server",
        noise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.service = service
        self._noise = noise
        self._step = stepper(service, labels_at)

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        inputs = self._leaving(batch)
        return _HostLoss.apply(inputs.embeds, inputs.detach(), labels, self._step)

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        return self.service.score(self._leaving(batch).detach(), positions, candidates)

    def next_tokens(self, batch: AdaptedBatch, positions: Tensor) -> Tensor:
        return self.service.next_tokens(self._leaving(batch).detach(), positions)

    def _leaving(self, batch: AdaptedBatch) -> LLMInputs:
        """All that the host gets of a batch, in training, in scoring and in generating."""
        inputs = batch.embedded()
        if self._noise is None:
            return inputs
        return replace(inputs, embeds=self._noise(inputs.embeds))

    def prefill(self, batch: AdaptedBatch) -> Generated:
        return self.service.prefill(self._leaving(batch).detach())

    def decode(self, cache: int, token: AdaptedBatch) -> Generated:
        inputs = self._leaving(token).detach()
        position = None if inputs.position_ids is None else inputs.position_ids[:, 0]
        new = NewToken(int(token.token_ids), embedding=inputs.embeds, position=position)
        return self.service.decode(cache, new)


class _HostLoss(torch.autograd.Function):
    """The host's loss as a node of the client's graph; its gradient came with the loss."""

    @staticmethod
    def forward(ctx: Any, embeds: Tensor, inputs: LLMInputs, labels: Tensor, step: Step) -> Tensor:
        loss, gradient = step(inputs, labels)
        assert isinstance(gradient, Tensor)
        ctx.save_for_backward(gradient.to(embeds))
        return embeds.new_tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient), None, None, None
