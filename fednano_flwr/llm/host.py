"""The frozen language model: loss and input gradients for clients, without training anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fednano_flwr.exchange.protocol import (
    IGNORE,
    Feature,
    FeaturesMissingError,
    LLMInfo,
    LLMInputs,
    LowRankGradients,
    LowRankInputs,
    adapted,
)
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.models.llm_half import LLMHalf


class FrozenLLM:
    """An `LLMService` that computes in this process.

    Every call is a function of its arguments, and of features that it names and that clients sent
    before: weights have no gradients, and the head is computed at the asked positions only. Samples
    are padded on the right, where a causal model cannot see the padding, so a sample's result does
    not depend on its neighbours' lengths.
    """

    def __init__(
        self, half: LLMHalf, max_tokens: int = 65536, features: FeatureStore | None = None
    ) -> None:
        self._half = half
        self._max_tokens = max_tokens
        self.features = FeatureStore(2**30) if features is None else features

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
        with torch.enable_grad():  # the caller may be inside another graph's forward
            loss = self._loss(embeds, inputs, labels)
        (gradient,) = torch.autograd.grad(loss, embeds)
        return loss.item(), gradient.to(inputs.embeds)

    def step_low_rank(
        self, inputs: LowRankInputs, labels: Tensor, owner: bytes = b""
    ) -> tuple[float, LowRankGradients]:
        """See `LLMService.step_low_rank`.

        Args:
            owner: whose features the keys name.
        """
        hidden = self._hidden(inputs, owner)
        z, b = (
            {s: v.detach().to(hidden.device).requires_grad_() for s, v in factors.items()}
            for factors in (inputs.z, inputs.b)
        )
        with torch.enable_grad():
            embeds = adapted(hidden, inputs.is_image.to(hidden.device), z, b)
            loss = self._loss(embeds, inputs, labels)
        leaves = [*z.values(), *b.values()]
        found = iter(torch.autograd.grad(loss, leaves) if leaves else ())
        return loss.item(), LowRankGradients(
            {site: next(found).to(inputs.z[site]) for site in z},
            {site: next(found).to(inputs.b[site]) for site in b},
        )

    @torch.no_grad()
    def score(
        self,
        inputs: LLMInputs | LowRankInputs,
        positions: Tensor,
        candidates: Tensor,
        owner: bytes = b"",
    ) -> Tensor:
        """See `LLMService.score`."""
        embeds = self._embeds(inputs, owner)
        logits = self._logits(embeds, inputs, positions)
        return logits[:, candidates.to(embeds.device)].cpu()

    @torch.no_grad()
    def next_tokens(
        self, inputs: LLMInputs | LowRankInputs, positions: Tensor, owner: bytes = b""
    ) -> Tensor:
        """See `LLMService.next_tokens`."""
        return self._logits(self._embeds(inputs, owner), inputs, positions).argmax(1).cpu()

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        """See `LLMService.keep_features`; they are kept in the host's dtype."""
        for feature in features:
            kept = feature.rows.detach().to(self._half.device, self._half.dtype)
            self.features.put(owner, feature.key, kept)

    def _embeds(self, inputs: LLMInputs | LowRankInputs, owner: bytes) -> Tensor:
        if isinstance(inputs, LLMInputs):
            return inputs.embeds.to(self._half.device, self._half.dtype)
        hidden = self._hidden(inputs, owner)
        z, b = (
            {site: value.to(hidden.device) for site, value in factors.items()}
            for factors in (inputs.z, inputs.b)
        )
        return adapted(hidden, inputs.is_image.to(hidden.device), z, b)

    @torch.no_grad()
    def _hidden(self, inputs: LowRankInputs, owner: bytes) -> Tensor:
        """Frozen embeddings (N, d) from the token table and the feature store.

        Raises:
            FeaturesMissingError: some of the features are not there.
            ValueError: features and image rows do not agree.
        """
        kept = [self.features.get(owner, key) for key in inputs.keys]
        missing = tuple(key for key, rows in zip(inputs.keys, kept, strict=True) if rows is None)
        if missing:
            raise FeaturesMissingError(missing)
        device = self._half.device
        is_image = inputs.is_image.to(device)
        hidden = torch.empty(
            len(is_image), self._half.hidden_size, device=device, dtype=self._half.dtype
        )
        hidden[~is_image] = self._half.embed(inputs.token_ids.to(device))
        count = sum(len(rows) for rows in kept if rows is not None)
        if count != int(is_image.sum()):
            raise ValueError(f"{count} features for {int(is_image.sum())} rows of pictures")
        if kept:
            hidden[is_image] = torch.cat([rows.to(hidden) for rows in kept if rows is not None])
        return hidden

    def _loss(self, embeds: Tensor, inputs: LLMInputs | LowRankInputs, labels: Tensor) -> Tensor:
        known = (labels != IGNORE).nonzero().squeeze(1)
        logits = self._logits(embeds, inputs, known)
        return F.cross_entropy(logits, labels[known].to(embeds.device))

    def _logits(
        self, embeds: Tensor, inputs: LLMInputs | LowRankInputs, positions: Tensor
    ) -> Tensor:
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
