"""The frozen language model: loss and input gradients for clients, without training anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fednano_flwr.exchange.protocol import IGNORE, LLMInfo
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
            hidden_size=self._half.hidden_size,
            vocabulary=self._half.vocabulary,
            dtype=str(self._half.dtype).removeprefix("torch."),
            max_tokens=self._max_tokens,
        )

    def step(
        self, embeds: Tensor, lengths: tuple[int, ...], labels: Tensor
    ) -> tuple[float, Tensor]:
        """See `LLMService.step`; the gradient comes back where and as the embeddings were."""
        inputs = embeds.detach().to(self._half.device, self._half.dtype).requires_grad_()
        known = (labels != IGNORE).nonzero().squeeze(1)
        with torch.enable_grad():  # the caller may be inside another graph's forward
            logits = self._logits(inputs, lengths, known.to(inputs.device))
            loss = F.cross_entropy(logits, labels[known].to(inputs.device))
        (gradient,) = torch.autograd.grad(loss, inputs)
        return loss.item(), gradient.to(embeds)

    @torch.no_grad()
    def score(
        self, embeds: Tensor, lengths: tuple[int, ...], positions: Tensor, candidates: Tensor
    ) -> Tensor:
        """See `LLMService.score`."""
        inputs = embeds.to(self._half.device, self._half.dtype)
        logits = self._logits(inputs, lengths, positions.to(inputs.device))
        return logits[:, candidates.to(inputs.device)].cpu()

    def _logits(self, inputs: Tensor, lengths: tuple[int, ...], positions: Tensor) -> Tensor:
        """Logits (P, vocabulary), at least in float32, at rows `positions` of `inputs` (N, d)."""
        padded = pad_sequence(list(inputs.split(list(lengths))), batch_first=True)
        hidden = self._half.hidden(padded)
        real = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
        logits = self._half.head(hidden[real.to(hidden.device)][positions])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
