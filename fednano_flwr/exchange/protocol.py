"""What crosses between a client and the frozen LLM, as the client's code sees it.

Training code only knows `LLM`: `loss = llm.loss(inputs, labels); loss.backward()`. Whether the
language model runs in this process or behind a wire is the business of the `LLMService` below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

PROTOCOL_VERSION = 2
IGNORE = -100


@dataclass(frozen=True)
class Feature:
    """Frozen image features of one question, by a name that the host may know them under."""

    key: bytes
    rows: Tensor  # (n, d)


@dataclass(frozen=True)
class AdaptedBatch:
    """A batch as the edge half makes it: frozen embeddings and what the adapters add to them.

    h' = h + z Bᵀ at the rows of each site. The exchanges differ in which parts they send.

    Attributes:
        hidden: (N, d) frozen embeddings h, samples laid one after another without padding.
        is_image: (N,) bool, rows that are image features; the others are tokens.
        token_ids: (N,) int64; at image rows the placeholder.
        features: the questions' image features; together they are the image rows in order.
        z: (n, R) float32 of each site that has an adapter ("image", "text"); s · A h.
        b: (d, R) float32 likewise.
        lengths, position_ids, token_type_ids: see `LLMInputs`.
    """

    hidden: Tensor
    is_image: Tensor
    token_ids: Tensor
    features: tuple[Feature, ...]
    z: dict[str, Tensor]
    b: dict[str, Tensor]
    lengths: tuple[int, ...]
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None

    def embedded(self) -> LLMInputs:
        """The adapted embeddings themselves, differentiable in z and b."""
        embeds = adapted(self.hidden, self.is_image, self.z, self.b)
        return LLMInputs(embeds, self.lengths, self.position_ids, self.token_type_ids)


def adapted(
    hidden: Tensor, is_image: Tensor, z: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> Tensor:
    """h + z Bᵀ at the rows of each site, (N, d) in the dtype of `hidden`.

    The sum is made in the dtype of z, as PEFT does.
    """
    result = hidden.clone()
    for site in z:
        places = (is_image if site == "image" else ~is_image).nonzero().squeeze(1)
        changed = hidden[places].to(z[site].dtype) + z[site] @ b[site].T
        result.index_copy_(0, places, changed.to(hidden.dtype))
    return result


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


@dataclass(frozen=True)
class LowRankInputs:
    """The same batch without its embeddings: the host makes them from what it has.

    Attributes:
        token_ids: (N - n,) of the rows that are tokens, in order.
        is_image: (N,) bool.
        keys: of the questions' image features, in order.
        z: (n, R) of each site that has an adapter.
        b: (d, R) likewise.
        lengths, position_ids, token_type_ids: see `LLMInputs`.
    """

    token_ids: Tensor
    is_image: Tensor
    keys: tuple[bytes, ...]
    z: dict[str, Tensor]
    b: dict[str, Tensor]
    lengths: tuple[int, ...]
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None


@dataclass(frozen=True)
class LowRankGradients:
    """Gradients of a loss with respect to z and b of a `LowRankInputs`, by site."""

    z: dict[str, Tensor]
    b: dict[str, Tensor]


class FeaturesMissingError(LookupError):
    """The host does not have (any more) the features of these keys; send them and ask again."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        super().__init__(f"{len(keys)} features are not at the host")
        self.keys = keys


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

    def step_low_rank(
        self, inputs: LowRankInputs, labels: Tensor, owner: bytes = b""
    ) -> tuple[float, LowRankGradients]:
        """Loss of a batch and its gradient with respect to z and b.

        Args:
            owner: whose features the batch names; over a wire, the caller.

        Raises:
            FeaturesMissingError: image features that the batch names are not here.
        """
        ...

    def score(
        self,
        inputs: LLMInputs | LowRankInputs,
        positions: Tensor,
        candidates: Tensor,
        owner: bytes = b"",
    ) -> Tensor:
        """Logits of `candidates` (K,) as the token after each of `positions` (P,): (P, K)."""
        ...

    def next_tokens(
        self, inputs: LLMInputs | LowRankInputs, positions: Tensor, owner: bytes = b""
    ) -> Tensor:
        """The likeliest token (int64) after each of `positions` (P,): (P,)."""
        ...

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        """Keep frozen image features for later batches to name; they may be gone at any time."""
        ...


class LLM(Protocol):
    """A frozen language model that a client can train against."""

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `labels` (N,) int64, differentiable in the batch's z and b."""
        ...

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        """Logits of `candidates` (K,) as the token after each of `positions` (P,): (P, K)."""
        ...

    def next_tokens(self, batch: AdaptedBatch, positions: Tensor) -> Tensor:
        """The likeliest token (int64) after each of `positions` (P,): (P,)."""
        ...
