"""The low-rank exchange: frozen parts are sent once, then only what the adapters' ranks need.

h' = h + z Bᵀ with z = s · A h. The host has h: token embeddings from its own table, image features
from its store. A step sends z (N·r) and B (d·r) and gets their gradients; the client's autograd
carries dL/dz on into A. The gradients are those of the plain exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from fednano_flwr.exchange.generation import Generated, NewToken
from fednano_flwr.exchange.labels import stepper
from fednano_flwr.exchange.protocol import (
    AdaptedBatch,
    FeaturesMissingError,
    HostRefusedError,
    LLMService,
    LowRankGradients,
    LowRankInputs,
)

Answer = TypeVar("Answer")
TRIES = 4
SITES = ("image", "text")


class LowRankExchange:
    """An `LLM` on top of any `LLMService`.

    Args:
        labels_at: "server" or "client".
    """

    def __init__(self, service: LLMService, labels_at: str = "server") -> None:
        self.service = service
        self._step = stepper(service, labels_at)

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        factors = _in_order(batch.z, batch.b)
        if not factors:  # nothing to train takes part in this batch
            return torch.tensor(self.step(batch, labels)[0])
        return _HostLoss.apply(self, batch, labels, *factors)

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        return self._answered(
            batch, lambda inputs: self.service.score(inputs, positions, candidates)
        )

    def next_tokens(self, batch: AdaptedBatch, positions: Tensor) -> Tensor:
        return self._answered(batch, lambda inputs: self.service.next_tokens(inputs, positions))

    def prefill(self, batch: AdaptedBatch) -> Generated:
        return self._answered(batch, self.service.prefill)

    def decode(self, cache: int, token: AdaptedBatch) -> Generated:
        z, positions = token.z.get("text"), token.position_ids
        new = NewToken(
            int(token.token_ids),
            z=None if z is None else z.detach(),
            position=None if positions is None else positions[:, 0],
        )
        return self.service.decode(cache, new)

    def step(self, batch: AdaptedBatch, labels: Tensor) -> tuple[float, LowRankGradients]:
        """Loss and gradients of one batch, features sent where the host lacks them."""
        loss, gradients = self._answered(batch, lambda inputs: self._step(inputs, labels))
        assert isinstance(gradients, LowRankGradients)
        return loss, gradients

    def _answered(self, batch: AdaptedBatch, ask: Callable[[LowRankInputs], Answer]) -> Answer:
        inputs = LowRankInputs(
            token_ids=batch.token_ids[~batch.is_image],
            is_image=batch.is_image,
            keys=tuple(feature.key for feature in batch.features),
            z={site: z.detach() for site, z in batch.z.items()},
            b={site: b.detach() for site, b in batch.b.items()},
            lengths=batch.lengths,
            position_ids=batch.position_ids,
            token_type_ids=batch.token_type_ids,
        )
        for _ in range(TRIES):
            try:
                return ask(inputs)
            except FeaturesMissingError as missing:
                wanted = set(missing.keys)
                self.service.keep_features([f for f in batch.features if f.key in wanted])
        raise HostRefusedError(
            f"the LLM host did not keep the features of one batch of {len(batch.features)} "
            "pictured questions: raise llm.feature-memory-mb, or lower batch-size"
        )


def _in_order(z: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[Tensor]:
    """Factors, or their gradients, as autograd takes them: a list."""
    return [part[site] for part in (z, b) for site in SITES if site in part]


class _HostLoss(torch.autograd.Function):
    """The host's loss as a node of the client's graph; its gradients came with the loss."""

    @staticmethod
    def forward(
        ctx: Any, exchange: LowRankExchange, batch: AdaptedBatch, labels: Tensor, *factors: Tensor
    ) -> Tensor:
        loss, gradients = exchange.step(batch, labels)
        found = _in_order(gradients.z, gradients.b)
        moved = [gradient.to(factor) for gradient, factor in zip(found, factors, strict=True)]
        ctx.save_for_backward(*moved)
        return factors[0].new_tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        return None, None, None, *(gradient * scale.to(gradient) for gradient in ctx.saved_tensors)
