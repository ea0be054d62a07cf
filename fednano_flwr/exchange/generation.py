"""An answer token by token: what crosses once the host has read the prompt and keeps its cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NewToken:
    """One more token of a sequence that the host keeps.

    Its embedding h' = h + z Bᵀ itself, or z: the host has h in its table, and B from the prefill.

    Attributes:
        id: of the token.
        z: (1, R) of the text adapter, where there is one and the prefill was low-rank.
        embedding: (1, d), where the prefill was embeddings.
        position: (axes,) int64, where the model's positions are not 0, 1, 2, …
    """

    id: int
    z: Tensor | None = None
    embedding: Tensor | None = None
    position: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """The likeliest next token, and the number of the cache that takes it; good once."""

    cache: int
    token: int
