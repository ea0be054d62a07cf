"""What crosses between a client and the frozen LLM, as the client's code sees it.

Training code only knows `LLM`: `loss = llm.loss(inputs, labels); loss.backward()`. Whether the
language model runs in this process or behind a wire is the business of the `LLMService` below it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

PROTOCOL_VERSION = 2
IGNORE = -100


@dataclass(frozen=True)
class LLMInputs:
    """Input embeddings of a batch, samples laid one after another without padding.

    Attributes:
        embeds: (N, d) floating point, may require a gradient.
        lengths: tokens of each of the B samples; they sum to N.
        position_ids: (axes, N) int64, where the model's positions are not 0, 1, 2, …
        token_type_ids: (N,) int64, where its attention mask depends on them.
    """

    embeds: Tensor
    lengths: tuple[int, ...]
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None

    def detach(self) -> LLMInputs:
        """The same without a gradient."""
        return replace(self, embeds=self.embeds.detach())


@dataclass(frozen=True)
class LLMInfo:
    """What a host runs and accepts.

    Attributes:
        model: the name that its operator gave it.
        fingerprint: equal where both sides hold halves of one checkpoint.
        hub_id: the model's name on the Hugging Face hub, "" where it came from a folder.
        hidden_size: d.
        vocabulary: number of token ids.
        dtype: in which it computes ("float32", "bfloat16" or "float16").
        max_tokens: most tokens in one request.
    """

    model: str
    fingerprint: str
    hub_id: str
    hidden_size: int
    vocabulary: int
    dtype: str
    max_tokens: int


class HostRefusedError(RuntimeError):
    """The host understood the request and will not serve it; repeating it is of no use."""


class HostUnreachableError(ConnectionError):
    """The host did not answer within the time that retries may take."""


class LLMService(Protocol):
    """The frozen language model as a pure function; every call is safe to repeat."""

    def describe(self) -> LLMInfo:
        """What runs here."""
        ...

    def step(self, inputs: LLMInputs, labels: Tensor) -> tuple[float, Tensor]:
        """Loss of a batch and its gradient with respect to the embeddings.

        Args:
            inputs: N tokens.
            labels: (N,) int64; the token that follows each position, `IGNORE` where unknown.

        Returns:
            Mean cross-entropy over the labelled positions, and d loss / d embeds, (N, d).
        """
        ...

    def score(self, inputs: LLMInputs, positions: Tensor, candidates: Tensor) -> Tensor:
        """Logits of `candidates` (K,) as the token after each of `positions` (P,): (P, K)."""
        ...

    def next_tokens(self, inputs: LLMInputs, positions: Tensor) -> Tensor:
        """The likeliest token (int64) after each of `positions` (P,): (P,)."""
        ...


class LLM(Protocol):
    """A frozen language model that a client can train against."""

    def loss(self, inputs: LLMInputs, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `labels` (N,) int64, differentiable in `inputs.embeds`."""
        ...

    def score(self, inputs: LLMInputs, positions: Tensor, candidates: Tensor) -> Tensor:
        """Logits of `candidates` (K,) as the token after each of `positions` (P,): (P, K)."""
        ...

    def next_tokens(self, inputs: LLMInputs, positions: Tensor) -> Tensor:
        """The likeliest token (int64) after each of `positions` (P,): (P,)."""
        ...
