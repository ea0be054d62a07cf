"""From what a client sends to rows that the language model reads, and back to their gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fednano_flwr.exchange.protocol import (
    FeaturesMissingError,
    Gradient,
    Inputs,
    LLMInputs,
    LowRankGradients,
    LowRankInputs,
    adapted,
)
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.models.llm_half import LLMHalf


@dataclass(frozen=True)
class Embedded:
    """Input embeddings of a batch in the host's dtype.

    Attributes:
        rows: (N, d) without a gradient.
        inputs: what they were made from.
        adapted: (N, d), the same rows as a function of `z` and `b`; None for an `LLMInputs`.
        z, b: leaves of that function, by site.
    """

    rows: Tensor
    inputs: Inputs
    adapted: Tensor | None
    z: dict[str, Tensor]
    b: dict[str, Tensor]

    def gradient(self, rows: Tensor) -> Gradient:
        """The gradient of what was sent, as it was sent, from that of the rows (N, d)."""
        if isinstance(self.inputs, LLMInputs):
            return rows.to(self.inputs.embeds)
        leaves = [*self.z.values(), *self.b.values()]
        assert self.adapted is not None
        found = iter(torch.autograd.grad(self.adapted, leaves, rows) if leaves else ())
        return LowRankGradients(
            {site: next(found).to(self.inputs.z[site]) for site in self.z},
            {site: next(found).to(self.inputs.b[site]) for site in self.b},
        )


def embed(
    inputs: Inputs, half: LLMHalf, features: FeatureStore, owner: bytes, trains: bool
) -> Embedded:
    """Input embeddings, ready for a gradient where `trains`.

    Raises:
        FeaturesMissingError: some of the image features are not there.
        ValueError: features and image rows do not agree, or the model cannot read the batch.
    """
    half.check(inputs.lengths, inputs.position_ids, inputs.token_type_ids)
    if isinstance(inputs, LLMInputs):
        rows = inputs.embeds.detach().to(half.device, half.dtype)
        return Embedded(rows, inputs, None, {}, {})
    hidden = _hidden(inputs, half, features, owner)
    z, b = (
        {s: v.detach().to(hidden.device).requires_grad_(trains) for s, v in factors.items()}
        for factors in (inputs.z, inputs.b)
    )
    with torch.set_grad_enabled(trains):  # the caller may be inside another graph's forward
        whole = adapted(hidden, inputs.is_image.to(hidden.device), z, b)
    return Embedded(whole.detach(), inputs, whole, z, b)


@torch.no_grad()
def _hidden(inputs: LowRankInputs, half: LLMHalf, features: FeatureStore, owner: bytes) -> Tensor:
    """Frozen embeddings (N, d) from the token table and the feature store."""
    kept = [features.get(owner, key) for key in inputs.keys]
    missing = tuple(key for key, rows in zip(inputs.keys, kept, strict=True) if rows is None)
    if missing:
        raise FeaturesMissingError(missing)
    is_image = inputs.is_image.to(half.device)
    hidden = torch.empty(len(is_image), half.hidden_size, device=half.device, dtype=half.dtype)
    hidden[~is_image] = half.embed(inputs.token_ids.to(half.device))
    count = sum(len(rows) for rows in kept if rows is not None)
    if count != int(is_image.sum()):
        raise ValueError(f"{count} features for {int(is_image.sum())} rows of pictures")
    if kept:
        hidden[is_image] = torch.cat([rows.to(hidden) for rows in kept if rows is not None])
    return hidden
