"""The plain exchange: embeddings go up, their gradient comes down (2·N·d numbers a step)."""

from __future__ import annotations

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
    """

    def __init__(self, service: LLMService, labels_at: str = "server") -> None:
        self.service = service
        self._step = stepper(service, labels_at)

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        inputs = batch.embedded()
        return _HostLoss.apply(inputs.embeds, inputs.detach(), labels, self._step)

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        return self.service.score(batch.embedded().detach(), positions, candidates)

    def next_tokens(self, batch: AdaptedBatch, positions: Tensor) -> Tensor:
        return self.service.next_tokens(batch.embedded().detach(), positions)

    def prefill(self, batch: AdaptedBatch) -> Generated:
        return self.service.prefill(batch.embedded().detach())

    def decode(self, cache: int, token: AdaptedBatch) -> Generated:
        inputs = token.embedded().detach()
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
