"""The frozen language model: loss and input gradients for clients, without training anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fednano_flwr.exchange.protocol import IGNORE, LLMInfo, LLMInputs
from fednano_flwr.models.llm_half import LLMHalf


class FrozenLLM:
    """An `LLMService` that computes in this process.

    Every call is a function of its arguments alone: nothing is kept between calls, weights have no
    gradients, and the head is computed at the asked positions only. Samples are padded on the
    right, where a causal model cannot see the padding, so a sample's result does not depend on its
    neighbours' lengths.
    """

    def __init__(self, half: LLMHalf, max_tokens: int = 65536) -> None:
        self._half = half
        self._max_tokens = max_tokens

    def describe(self) -> LLMInfo:
        return LLMInfo(
            model=self._half.model,
            fingerprint=self._half.fingerprint,
            hub_id=self._half.hub_id,
            hidden_size=self._half.hidden_size,
            vocabulary=self._half.vocabulary,
            dtype=str(self._half.dtype).removeprefix("torch."),
            max_tokens=self._max_tokens,
        )

    def step(self, inputs: LLMInputs, labels: Tensor) -> tuple[float, Tensor]:
        """See `LLMService.step`; the gradient comes back where and as the embeddings were."""
        embeds = inputs.embeds.detach().to(self._half.device, self._half.dtype).requires_grad_()
        known = (labels != IGNORE).nonzero().squeeze(1)
        with torch.enable_grad():  # the caller may be inside another graph's forward
            logits = self._logits(embeds, inputs, known)
            loss = F.cross_entropy(logits, labels[known].to(embeds.device))
        (gradient,) = torch.autograd.grad(loss, embeds)
        return loss.item(), gradient.to(inputs.embeds)

    @torch.no_grad()
    def score(self, inputs: LLMInputs, positions: Tensor, candidates: Tensor) -> Tensor:
        """See `LLMService.score`."""
        embeds = inputs.embeds.to(self._half.device, self._half.dtype)
        logits = self._logits(embeds, inputs, positions)
        return logits[:, candidates.to(embeds.device)].cpu()

    @torch.no_grad()
    def next_tokens(self, inputs: LLMInputs, positions: Tensor) -> Tensor:
        """See `LLMService.next_tokens`."""
        embeds = inputs.embeds.to(self._half.device, self._half.dtype)
        return self._logits(embeds, inputs, positions).argmax(1).cpu()

    def _logits(self, embeds: Tensor, inputs: LLMInputs, positions: Tensor) -> Tensor:
        """Logits (P, vocabulary), at least in float32, at rows `positions` of `embeds` (N, d)."""
        lengths = list(inputs.lengths)
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        rows = real.flatten().nonzero().squeeze(1)[positions.cpu()]
        logits = self._half.logits(
            _pad(embeds, lengths),
            rows.to(embeds.device),
            real.to(embeds.device),
            _padded(inputs.position_ids, lengths, embeds.device),
            _padded(inputs.token_type_ids, lengths, embeds.device),
        )
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _padded(values: Tensor | None, lengths: list[int], device: torch.device) -> Tensor | None:
    """(N,) as (B, T), or (axes, N) as (axes, B, T), padded on the right with zeros."""
    if values is None:
        return None
    if values.dim() == 2:
        return torch.stack([_pad(axis, lengths) for axis in values.to(device)])
    return _pad(values.to(device), lengths)


def _pad(values: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence(list(values.split(lengths)), batch_first=True)
