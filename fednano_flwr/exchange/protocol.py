"""What crosses between a client and the frozen LLM, as the client's code sees it.

Training code only knows `LLM`: `loss = llm.loss(inputs, labels); loss.backward()`. Whether the
language model runs in this process or behind a wire is the business of the `LLMService` below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from fednano_flwr.exchange.generation import Generated, NewToken

PROTOCOL_VERSION = 4
IGNORE = -100
NOT_FINITE_ADVICE = (
    'set llm.dtype to "bfloat16" or "float32", whose range is wider than that of "float16"; where '
    "earlier rounds went well, lower learning-rate or max-grad-norm"
)

STILL_WANTED: ContextVar[Callable[[], bool]] = ContextVar("STILL_WANTED", default=lambda: True)
"""Whether anyone waits for the answer of the call that this thread is in."""


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
        fingerprint: of its checkpoint, to be compared by `models.fingerprint.same_checkpoint`.
        hub_id: the model's name on the Hugging Face hub, "" where it came from a folder.
        hidden_size: d.
        vocabulary: number of token ids.
        dtype: in which it computes ("float32", "bfloat16" or "float16").
        max_tokens: most tokens in one request.
        parameters: of the language model and its head, all frozen.
        revision: the model's commit on the hub, "" where it came from a folder.
    """

    model: str
    fingerprint: str
    hub_id: str
    hidden_size: int
    vocabulary: int
    dtype: str
    max_tokens: int
    parameters: int = 0
    revision: str = ""


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


Inputs = LLMInputs | LowRankInputs
Gradient = Tensor | LowRankGradients
"""Of a loss: with respect to the embeddings of an `LLMInputs`, or z and b of a `LowRankInputs`."""


class FeaturesMissingError(LookupError):
    """The host does not have (any more) the features of these keys; send them and ask again."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        super().__init__(keys)
        self.keys = keys

    def __str__(self) -> str:
        return f"{len(self.keys)} features are not at the host"


class GoneError(LookupError):
    """The host does not have (any more) what it kept of an earlier call."""


class GraphGoneError(GoneError):
    """The host does not have (any more) the graph of a `forward`; do it again."""


class CacheGoneError(GoneError):
    """The host does not have (any more) the cache of a `prefill`; begin again with all tokens."""


class HostBusyError(RuntimeError):
    """The host has as much to do as it may take on; ask again later."""


class HostRefusedError(RuntimeError):
    """The host understood the request and will not serve it; repeating it is of no use."""


class HostUnreachableError(ConnectionError):
    """The host did not answer within the time that retries may take."""


class LLMService(Protocol):
    """The frozen language model as a pure function; every call is safe to repeat.

    `owner` is who asks: features and graphs belong to the one who made them. Over a wire it is the
    caller, whatever the argument says.

    Raises (all calls with inputs):
        FeaturesMissingError: image features that a low-rank batch names are not here.
        HostBusyError: too much is waiting already.
    """

    def describe(self) -> LLMInfo:
        """What runs here."""
        ...

    def step(self, inputs: Inputs, labels: Tensor, owner: bytes = b"") -> tuple[float, Gradient]:
        """Loss of a batch and its gradient.

        Args:
            inputs: N tokens.
            labels: (N,) int64; the token that follows each position, `IGNORE` where unknown.

        Returns:
            Mean cross-entropy over the labelled positions, and its gradient with respect to the
            embeddings (N, d), or to z and b.
        """
        ...

    def forward(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        """The first half of a step whose labels stay with the client.

        Returns:
            The number of the graph that is kept for `backward`, one an owner and for a limited
            time; and the logits (P, vocabulary) after `positions` (P,).
        """
        ...

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        """The second half: from the loss's gradient with respect to the logits, (P, vocabulary).

        Raises:
            GraphGoneError: the graph is not here (any more).
        """
        ...

    def score(
        self, inputs: Inputs, positions: Tensor, candidates: Tensor, owner: bytes = b""
    ) -> Tensor:
        """Logits of `candidates` (K,) as the token after each of `positions` (P,): (P, K)."""
        ...

    def next_tokens(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> Tensor:
        """The likeliest token (int64) after each of `positions` (P,): (P,).

        Raises:
            ValueError: logits are not finite, so that no token is the likeliest.
        """
        ...

    def prefill(self, inputs: Inputs, owner: bytes = b"") -> Generated:
        """Read one sample, keep its keys and values for a limited time, and say what follows.

        Raises:
            ValueError: there are several samples, or logits are not finite.
        """
        ...

    def decode(self, cache: int, token: NewToken, owner: bytes = b"") -> Generated:
        """Read one more token of a sequence that is kept, and say what follows.

        The cache is then another one, by another number: a call that is repeated finds it gone.

        Raises:
            CacheGoneError: the cache is not here (any more).
            ValueError: the token is not as the prefill was, or logits are not finite.
        """
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


class GeneratingLLM(LLM, Protocol):
    """One that also answers token by token."""

    def prefill(self, batch: AdaptedBatch) -> Generated:
        """See `LLMService.prefill`."""
        ...

    def decode(self, cache: int, token: AdaptedBatch) -> Generated:
        """See `LLMService.decode`; `token` is a batch of one token of text."""
        ...
