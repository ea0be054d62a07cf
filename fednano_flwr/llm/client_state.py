"""What the host keeps for a client between two calls: graphs, and keys and values of answers.

A number that is hard to guess names each. All are bounded in number and in time, and any may be
gone: then the client begins its step or its answer again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor
from transformers.cache_utils import Cache

from fednano_flwr.exchange.protocol import (
    CacheGoneError,
    Embedded,
    GoneError,
    GraphGoneError,
    HostBusyError,
    NewToken,
)
from fednano_flwr.models.llm_half import LLMHalf

State = TypeVar("State")

LIMIT = 16
"""States of one kind, of all owners together."""
SECONDS = 60.0
"""How long each is kept."""
ANSWERS_OF_OWNER = 4
"""Answers that one client may have under way at once, where nothing else is asked for."""


@dataclass(frozen=True)
class _Entry(Generic[State]):
    owner: bytes
    end: float
    state: State


class ClientState(Generic[State]):
    """States that wait for their owner's next call; each is taken once.

    Args:
        limit: how many there may be.
        seconds: how long one is kept.
        of_owner: how many of one owner; its latest replaces its oldest.

    Attributes:
        what: the states' name in an error.
        gone: the error for one that is not here.
    """

    what = "states"
    gone: type[GoneError] = GoneError

    def __init__(self, limit: int = LIMIT, seconds: float = SECONDS, of_owner: int = 1) -> None:
        self._limit, self._seconds, self._of_owner = limit, seconds, of_owner
        self._kept: dict[int, _Entry[State]] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._kept)

    def make_room(self, owner: bytes) -> None:
        """Forget the owner's states that one more replaces, and all whose time is over.

        Raises:
            HostBusyError: too many others are kept.
        """
        self._forget_oldest(owner, self._of_owner - 1)
        self.expire()
        if len(self._kept) >= self._limit:
            raise HostBusyError(
                f"{len(self._kept)} {self.what} wait for their clients' next call; the host keeps "
                f"{self._limit}"
            )

    def keep(self, owner: bytes, state: State) -> int:
        """Keep one more state of the owner; returns its number."""
        self._forget_oldest(owner, self._of_owner - 1)
        number = secrets.randbits(63)
        self._kept[number] = _Entry(owner, time.monotonic() + self._seconds, state)
        return number

    def take(self, owner: bytes, number: int) -> State:
        """The state of this number, once.

        Raises:
            GoneError: of the kind `gone`: the owner has none of this number, or its time is over.
        """
        self.expire()
        entry = self._kept.get(number)
        if entry is None or entry.owner != owner:
            raise self.gone(f"{number} is not here any more")
        del self._kept[number]
        return entry.state

    def expire(self) -> None:
        """Forget those whose time is over."""
        now = time.monotonic()
        self._kept = {n: entry for n, entry in self._kept.items() if entry.end >= now}

    def _of(self, owner: bytes) -> list[int]:
        return [number for number, entry in self._kept.items() if entry.owner == owner]

    def _forget_oldest(self, owner: bytes, left: int) -> None:
        own = self._of(owner)
        for number in own[: max(0, len(own) - left)]:
            del self._kept[number]


@dataclass(frozen=True)
class Graph:
    """A forward pass that waits for the gradient of its logits.

    Attributes:
        embedded: the batch.
        rows: (N, d) its rows as the leaf of the graph.
        logits: (P, vocabulary).
    """

    embedded: Embedded
    rows: Tensor
    logits: Tensor


class Graphs(ClientState[Graph]):
    """Graphs between the two halves of a step whose labels stay with the client: one an owner."""

    what = "graphs"
    gone = GraphGoneError


@dataclass(frozen=True)
class CachedAnswer:
    """An answer under way: a sequence that the language model has read.

    Attributes:
        cache: keys and values of the model's layers.
        tokens: how many it has read.
        embedder: of the prompt's exchange; makes the input embedding (1, d) of a further token.
    """

    cache: Cache
    tokens: int
    embedder: Callable[[NewToken], Tensor]

    def embed(self, token: NewToken, half: LLMHalf) -> Tensor:
        """The input embedding (1, d) of one more token, in the host's dtype.

        Raises:
            ValueError: the token is not as the prompt was, or its position not as the family's
                language model needs it.
        """
        axes = half.family.position_axes
        given = 0 if token.position is None else len(token.position)
        if given != axes:
            raise ValueError(f"{half.model} needs a position with {axes} axes, not {given}")
        return self.embedder(token)


class Caches(ClientState[CachedAnswer]):
    """Answers under way, from one token to the next.

    Args:
        limit, seconds, of_owner: see `ClientState`.
        max_tokens: most tokens of all of them together.
    """

    what = "answers under way"
    gone = CacheGoneError

    def __init__(
        self,
        limit: int = LIMIT,
        seconds: float = SECONDS,
        of_owner: int = ANSWERS_OF_OWNER,
        max_tokens: int = 65536,
    ) -> None:
        super().__init__(limit, seconds, of_owner)
        self._max_tokens = max_tokens

    @property
    def tokens(self) -> int:
        """Of all answers; may be asked for from another thread."""
        return sum(entry.state.tokens for entry in list(self._kept.values()))

    def make_room_for(self, owner: bytes, tokens: int) -> None:
        """Forget the owner's answers that one of so many tokens replaces.

        Raises:
            HostBusyError: the others' are too many, or have too many tokens.
            ValueError: the answer alone has too many.
        """
        if tokens > self._max_tokens:
            raise ValueError(
                f"an answer after {tokens - 1} tokens; the host takes {self._max_tokens} "
                "(llm.max-tokens)"
            )
        self.make_room(owner)
        for number in self._of(owner):
            if self.tokens + tokens > self._max_tokens:
                del self._kept[number]
        if self.tokens + tokens > self._max_tokens:
            raise HostBusyError(
                f"{len(self)} answers under way hold {self.tokens} tokens; all together may hold "
                f"{self._max_tokens} (llm.max-tokens)"
            )
