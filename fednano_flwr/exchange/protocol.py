"""The seam between a client and the frozen LLM.

Training code only knows `LLM`: `loss = llm.loss(inputs, labels); loss.backward()`. An `Exchange`
stands below it and turns a batch into `Inputs` for an `LLMService`, which is a model in this
process, several replicas of it, or a host over gRPC.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from fednano_flwr.config import SITES
from fednano_flwr.exchange.at_host import AtHost, HostMap, SessionResult, Turn
from fednano_flwr.exchange.errors import RefusalError

if TYPE_CHECKING:
    from fednano_flwr.exchange.wire import fednano_pb2 as pb

PROTOCOL_VERSION = 9
IGNORE = -100
NOT_FINITE_ADVICE = (
    'set llm.dtype to "bfloat16" or "float32", whose range is wider than that of "float16"; where '
    "earlier rounds went well, lower learning-rate or max-grad-norm"
)

STILL_WANTED: ContextVar[Callable[[], bool]] = ContextVar("STILL_WANTED", default=lambda: True)
"""Whether the caller of this thread's call still waits for its answer."""


def at_site(sites: Tensor, site: str) -> Tensor:
    """(N,) bool: which rows are of a site.

    Args:
        sites: (N,) int8, each row's site as its index in `SITES`.
    """
    return sites == SITES.index(site)


class ConnectorInput(NamedTuple):
    """What a site's connector reads to make features: (…, k), as the model calls it."""

    site: str
    values: Tensor


@dataclass(frozen=True)
class Feature:
    """Frozen features of a question's pictures, or of its sounds, and the host's key for them.

    Attributes:
        rows: (n, d + L·d): embeddings h and, in some families, what `Layout.deep` has of them.
        read: what is sent in their place to a host that has the connector.
    """

    key: bytes
    rows: Tensor
    read: ConnectorInput | None = None


class Layout(NamedTuple):
    """How a batch's N tokens are laid out.

    Attributes:
        lengths: tokens of each of the B samples; they sum to N.
        position_ids: (axes, N) int64, where the model's positions are not 0, 1, 2, …
        token_type_ids: (N,) int64 of 0 and 1, where it has to know which tokens are of pictures,
            or of answers.
        token_ids: (N,) int64, where its layers look tokens up in tables of their own; any at
            pictures.
        deep: (n, L·d), where L of its layers add features to the rows of pictures (of type 1).
    """

    lengths: tuple[int, ...]
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None
    token_ids: Tensor | None = None
    deep: Tensor | None = None

    @property
    def tokens(self) -> int:
        """N."""
        return sum(self.lengths)

    def split(self) -> list[Layout]:
        """Of each sample by itself."""
        types = _parts(self.token_type_ids, self.lengths)
        pictured = [0 if own is None else int(own.sum()) for own in types]
        parts = zip(
            self.lengths,
            _parts(self.position_ids, self.lengths),
            types,
            _parts(self.token_ids, self.lengths),
            _parts(self.deep, pictured, dim=0),
            strict=True,
        )
        return [Layout((length,), *own) for length, *own in parts]


def _parts(values: Tensor | None, sizes: Sequence[int], dim: int = -1) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if values is None else values.split(list(sizes), dim)


class NamedFactors(NamedTuple):
    """Constant factors of a site's adapter, each None where it is not constant.

    Attributes:
        a: A (r, d), float32.
        b: Bᵀ (r, d).
        scale: s.
    """

    a: Feature | None
    b: Feature | None
    scale: float


@dataclass(frozen=True)
class FrozenBatch:
    """What of a batch does not depend on the adapters.

    Attributes:
        hidden: (N, d) frozen embeddings h, samples laid one after another without padding.
        sites: (N,) int8, whose rows are features of pictures or sounds, and whose are tokens; see
            `at_site`.
        token_ids: (N,) int64; where features are, the placeholder.
        features: of the questions, site after site in the order of `SITES`; those of a site are its
            rows in order.
    """

    hidden: Tensor
    sites: Tensor
    token_ids: Tensor
    features: tuple[Feature, ...]
    layout: Layout


@dataclass(frozen=True)
class AdaptedBatch(FrozenBatch):
    """A batch as the edge half makes it: frozen embeddings and what the adapters add to them.

    h' = h + z Bᵀ at the rows of each site. The exchanges differ in which parts they send.

    Attributes:
        z: (n, R) float32 of each site that has an adapter ; s · A h. Not of one whose A is named.
        b: (d, R) float32 likewise. Not of one whose B is named.
        named: of sites, factors that are constant and that a host which has h may know.
    """

    z: dict[str, Tensor]
    b: dict[str, Tensor]
    named: dict[str, NamedFactors] = field(default_factory=dict)

    def embedded(self) -> Tensor:
        """The adapted embeddings h' (N, d), differentiable in z and b."""
        return adapted(self.hidden, self.sites, self.z, self.b)


def adapted(
    hidden: Tensor,
    sites: Tensor,
    z: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    map: HostMap | None = None,
) -> Tensor:
    """h + z Bᵀ at the rows of each site, with a map h + M h + z Bᵀ; (N, d) as `hidden` is.

    The sum is made in the dtype of z, as PEFT does; with a map in float32 at least.
    """
    result = hidden.clone()
    for site in dict.fromkeys((*z, *(map.factors if map else ()))):
        places = at_site(sites, site).nonzero().squeeze(1)
        changed = hidden[places]
        change = map.change(site, changed) if map else None
        if site in z:
            changed = changed.to(z[site].dtype) + z[site] @ b[site].T
        if change is not None:
            changed = changed + change
        result.index_copy_(0, places, changed.to(hidden.dtype))
    return result


Gradient = tuple[Tensor, ...]
"""Of a loss, with respect to the tensors of `Inputs.leaves` and in their order.

Of a session's step, last comes the squared norm of the gradient at the host, () float64.
"""


class TokenTable(Protocol):
    """The host's frozen token embeddings."""

    hidden_size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def reads_ids(self) -> bool:
        """Whether the language model needs `Layout.token_ids`."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (n, d) of tokens (n,), on the table's device."""
        ...


@dataclass(frozen=True)
class Embedded:
    """Input embeddings of a batch at the host, and the way back to what was sent.

    Attributes:
        rows: (N, d) in the host's dtype, without a gradient.
        gradient: from the gradient of the rows (N, d) to that of the leaves, each on the device
            and in the dtype in which it was sent.
        layout: with all that the language model needs, sent or known to the host.
    """

    rows: Tensor
    gradient: Callable[[Tensor], Gradient]
    layout: Layout


class Inputs(ABC):
    """A batch as an exchange sends it: everything that the two sides of the exchange agree on.

    Attributes:
        FIELD: of `Inputs` in fednano.proto.
        HAS_HIDDEN: whether the host has the frozen embeddings h.
        at_host: that the host computes the batch with; not sent.
        turn: of a session, where the batch trains a LoRA at the host.
    """

    FIELD: ClassVar[str]
    HAS_HIDDEN: ClassVar[bool] = False
    layout: Layout
    at_host: AtHost | None = None
    turn: Turn | None = None

    # At the client:

    @classmethod
    @abstractmethod
    def of(cls, batch: AdaptedBatch) -> Self:
        """What is sent of a batch; the leaves are differentiable in its z and b."""

    @staticmethod
    @abstractmethod
    def token_rows(tokens: AdaptedBatch) -> Tensor | None:
        """What is sent of a batch that is k tokens of text, (k, ·); see `NewTokens`."""

    @property
    @abstractmethod
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that a gradient is wanted of."""

    @abstractmethod
    def detach(self) -> Self:
        """The same without a gradient."""

    # On the wire:

    @abstractmethod
    def fill(self, message: pb.Inputs, dtype: str) -> None:
        """Write all but the layout, numbers cast to `dtype`."""

    @classmethod
    @abstractmethod
    def read(cls, message: pb.Inputs, layout: Layout, info: LLMInfo) -> Self:
        """What `fill` wrote.

        Raises:
            ValueError: it does not fit the layout or the model.
        """

    # At the host:

    def through(self, part: AtHost) -> Self:
        """The same batch, to be computed with a part of the model that is at the host.

        Raises:
            RefusalError: it has a map, and the host never has h in this exchange.
        """
        if part.map is not None and not self.HAS_HIDDEN:
            raise RefusalError(
                "a part of this run's model is a map at the host, which is applied to frozen "
                'embeddings, and this batch has none: use exchange.kind = "lowrank"'
            )
        return self.with_(at_host=part)

    def with_(self, **changes: Any) -> Self:
        """The same batch, some attributes changed."""
        made = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(made, name, value)  # subclasses are frozen
        return made

    @abstractmethod
    def embed(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None], trains: bool
    ) -> Embedded:
        """Input embeddings, ready for a gradient where `trains`.

        Args:
            features: (n, d + L·d) that the host keeps, by key.

        Raises:
            FeaturesMissingError: the host lacks some of the features.
            ValueError: features and rows do not agree.
        """

    @abstractmethod
    def token_embedder(
        self, table: TokenTable, features: Callable[[bytes], Tensor | None]
    ) -> Callable[[NewTokens], Tensor]:
        """From further tokens of these sequences to their input embeddings (k, d) at the host.

        Args:
            features: as in `embed`.

        It raises a ValueError for tokens that another exchange sent.
        """


@dataclass(frozen=True)
class NewTokens:
    """One more token of each sequence that goes on, of those that the host keeps.

    Attributes:
        sequences: (k,) int64, ascending: which of the kept ones go on; the others are forgotten.
        ids: (k,) int64.
        rows: what the exchange sends of them: embeddings (k, d), or z (k, R) of the text adapter.
        position_ids: (axes, k) int64, where the model's positions are not 0, 1, 2, …
    """

    sequences: Tensor
    ids: Tensor
    rows: Tensor | None = None
    position_ids: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """The likeliest next token (k,) of each sequence.

    Attributes:
        cache: number of the cache that takes them; good once.
    """

    cache: int
    tokens: Tensor


class Room(NamedTuple):
    """Room for keys and values of a batch.

    Attributes:
        cache: its number, good once; 0: others come first.
        most: tokens that the host has room for, of all batches together.
        ahead: how many come first.
    """

    cache: int
    most: int
    ahead: int = 0


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
        deep_size: L·d, see `Layout.deep`; 0 in most families.
        lora: `models.lora.digest_of` the LoRA inside where it stays as it is; "" without one, and
            in a run, whose phases bring theirs.
        connector: `models.connector.connector_digest` of what makes features here; "" without.
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
    deep_size: int = 0
    lora: str = ""
    connector: str = ""

    @property
    def feature_size(self) -> int:
        """Numbers in a row of a picture's features."""
        return self.hidden_size + self.deep_size


class LLMService:
    """The frozen language model as a pure function; every call is safe to repeat.

    A subclass says what each call does, or in `_call` what becomes of all that it does not say.

    `owner` is who asks: features, graphs and caches belong to the owner who made them. Over a wire
    the caller's token decides, whatever the argument says.

    Raises (all calls with inputs):
        FeaturesMissingError: the host lacks features that the batch names.
        HostBusyError: too much is waiting already.
    """

    def describe(self) -> LLMInfo:
        """What runs here."""
        raise NotImplementedError

    def begin(self, part: AtHost | None, owner: bytes = b"") -> int:
        """A session: training of the LoRA inside the language model, for one round.

        Args:
            part: of the phase; the host sets it itself.

        Returns:
            Its number, for the `turn` of each batch; 0 where there is no room now: ask again.

        Raises:
            RefusalError: there is no room for a single one.
        """
        return self._call("begin", owner, part)

    def end(self, turn: Turn, owner: bytes = b"") -> SessionResult | None:
        """End a session; what it has led to stays at the server.

        Args:
            turn: the one that would be next.

        Raises:
            SessionGoneError: the host no longer has it.
        """
        return self._call("end", owner, turn)

    def forget_sessions(self) -> None:
        """Forget all sessions: their round is over."""
        raise NotImplementedError

    def step(self, inputs: Inputs, labels: Tensor, owner: bytes = b"") -> tuple[float, Gradient]:
        """Loss of a batch and its gradient.

        A batch that has a `turn` is a step of a session. Repeating it changes nothing.

        Args:
            inputs: N tokens.
            labels: (N,) int64; the token that follows each position, `IGNORE` where unknown.

        Returns:
            Mean cross-entropy over the labelled positions, and its gradient.

        Raises:
            SessionGoneError: the host no longer has the session.
        """
        return self._call("step", owner, inputs, labels)

    def forward(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        """The first half of a step whose labels stay with the client.

        Returns:
            The number of the graph that is kept for `backward`, one an owner and for a limited
            time; and the logits (P, vocabulary) after `positions` (P,).
        """
        return self._call("forward", owner, inputs, positions)

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        """The second half: from the loss's gradient with respect to the logits, (P, vocabulary).

        Raises:
            GraphGoneError: the host no longer has the graph.
        """
        return self._call("backward", owner, graph, gradient)

    def score(
        self, inputs: Inputs, positions: Tensor, candidates: Tensor, owner: bytes = b""
    ) -> Tensor:
        """Log-probabilities (P, K) of `candidates` (K,) as the token after `positions` (P,).

        Among all tokens of the vocabulary, which are also the candidates where K is 0.
        """
        return self._call("score", owner, inputs, positions, candidates)

    def token_losses(
        self, inputs: Inputs, positions: Tensor, tokens: Tensor, owner: bytes = b""
    ) -> Tensor:
        """−log p of `tokens` (P,), each as the token after its one of `positions` (P,): (P,)."""
        return self._call("token_losses", owner, inputs, positions, tokens)

    def reserve(self, tokens: int, owner: bytes = b"") -> Room:
        """Room for a batch's answers, for a limited time; where others come first, ask again.

        Args:
            tokens: of the longest prompt and its answer without the last token, times the prompts.
        """
        return self._call("reserve", owner, tokens)

    def prefill(self, cache: int, inputs: Inputs, owner: bytes = b"") -> Generated:
        """Read prompts into room that was reserved, and say what follows each.

        Raises:
            CacheGoneError: the host no longer has the room.
            ValueError: it is for fewer tokens, or logits are not finite.
        """
        return self._call("prefill", owner, cache, inputs)

    def decode(self, cache: int, tokens: NewTokens, owner: bytes = b"") -> Generated:
        """Read one more token of each sequence that goes on, and say what follows.

        The cache gets a new number each time, so a repeated call finds the old one gone.

        Raises:
            CacheGoneError: the host no longer has the cache.
            ValueError: there is no such sequence, another exchange sent the tokens, room was
                reserved for fewer, or logits are not finite.
        """
        return self._call("decode", owner, cache, tokens)

    def release(self, cache: int, owner: bytes = b"") -> None:
        """Forget a cache, if it is here; answers that have ended need it no more."""
        self._call("release", owner, cache)

    def lacks(self, keys: Sequence[bytes], owner: bytes = b"") -> list[bytes]:
        """Which of these features are not kept now."""
        return self._call("lacks", owner, keys)

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        """Keep frozen features for later batches to name, as long as there is room."""
        self._call("keep_features", owner, features)

    def beside(self) -> LLMService:
        """The same service for a second thread of one client, closed with this one."""
        return self

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        """Carry out a call by its method's name."""
        raise NotImplementedError


class LLM(Protocol):
    """A frozen language model that a client can train against."""

    def prepare(self, batch: FrozenBatch) -> None:
        """Send what the host lacks of a batch to come; for one thread beside that of all calls."""
        ...

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `labels` (N,) int64, differentiable in the batch's z and b."""
        ...

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        """Log-probabilities (P, K) of `candidates` (K,) as the token after `positions` (P,).

        Among all tokens of the vocabulary.
        """
        ...

    def token_losses(
        self, batch: AdaptedBatch, positions: Tensor, tokens: Tensor, secret: bool = True
    ) -> Tensor:
        """−log p of `tokens` (P,), each as the token after its one of `positions` (P,): (P,).

        Args:
            secret: the tokens stay where a training step's labels do. False for those that say
                nothing of an answer, as all options' of a question.
        """
        ...

    def prefill(self, batch: AdaptedBatch, most: int) -> Generated:
        """Read prompts, or prompts with the answers so far, and say what follows each.

        Args:
            most: tokens that may follow each.

        Raises:
            NoRoomError: take a smaller batch.
            CacheGoneError: ask again.
        """
        ...

    def decode(self, cache: int, sequences: Tensor, tokens: AdaptedBatch) -> Generated:
        """Read one more token of each sequence that goes on, and say what follows.

        Args:
            sequences: (k,) which of the last reply's sequences go on, ascending.
            tokens: their k tokens of text, each as a sample.

        Raises:
            CacheGoneError: begin again with `prefill`.
        """
        ...

    def release(self, cache: int) -> None:
        """Let the answers go that this cache is of."""
        ...
