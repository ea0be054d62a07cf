"""Answers under way: what layers keep of a batch's sequences, from one token to the next.

The room is bounded in tokens, padding included. A client reserves it for its whole batch, so that
an answer that has begun never waits for more. Who finds none is in a line and asks again; nobody
overtakes there. An answer that is not gone on with gives its room up after some time, and any that
has had it for so long gives it up where others wait. Its client begins again with the tokens so
far, so each turn brings it further.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache

from fednano_flwr.exchange.at_host import HostLora
from fednano_flwr.exchange.errors import CacheGoneError
from fednano_flwr.exchange.protocol import NewTokens, Room

log = logging.getLogger(__name__)

SECONDS = 60.0
"""How long an answer is kept after its last token, and how long in all where others wait."""
LINE_SECONDS = 15.0
"""A client that has not asked again for so long is no longer in the line."""


@dataclass
class Answers:
    """Sequences that the language model has read.

    Attributes:
        cache: keys and values of the model's layers, or their states.
        pads: (B,) positions on the left of each sequence that are padding.
        width: positions that have been read, padding included.
        embedder: of the prompts' exchange; makes the input embeddings (k, d) of further tokens.
        lora: inside the language model, that the prompts were read with.
    """

    cache: Cache
    pads: Tensor
    width: int
    embedder: Callable[[NewTokens], Tensor]
    lora: HostLora | None = None

    def go_on_with(self, sequences: Tensor) -> None:
        """Forget all sequences but these (k,).

        Raises:
            ValueError: they do not ascend within the batch, or there are none.
        """
        count = len(self.pads)
        ascend = bool((sequences.diff() > 0).all())
        if not len(sequences) or not ascend or not 0 <= int(sequences[0]) <= sequences[-1] < count:
            raise ValueError(f"{len(sequences)} sequences do not ascend among the {count} kept")
        if len(sequences) < count:
            # Not `batch_select_indices`, which layers that keep a state do not have.
            self.cache.reorder_cache(sequences)  # type: ignore[arg-type]  # a Tensor is enough
            self.pads = self.pads[sequences]


@dataclass(eq=False)
class Place:
    """Room that an owner has.

    Attributes:
        tokens: that it is for, padding included.
        since, end: when it was given, and when it ends if nothing happens, by `time.monotonic`.
        answers: what it holds; None until the prompts have been read.
        number: names it until its next use.
        calls: that wait for their turn to use it.
    """

    owner: bytes
    tokens: int
    since: float
    end: float
    answers: Answers | None = None
    number: int = 0
    calls: int = 0

    def check(self, sequences: int, width: int) -> None:
        """
        Raises:
            ValueError: so many sequences of so many positions are more than the room is for.
        """
        if sequences * width > self.tokens:
            raise ValueError(
                f"{sequences} answers of {width} tokens; room was reserved for {self.tokens}"
            )


class Caches:
    """Rooms of all owners; for several threads at once.

    Args:
        max_tokens: of all rooms together.
        seconds: see `SECONDS`.
        of_owner: rooms of one owner, of which the latest replaces the oldest; 0: any number.
    """

    def __init__(
        self, max_tokens: int = 65536, seconds: float = SECONDS, of_owner: int = 1
    ) -> None:
        self._max_tokens, self._seconds, self._of_owner = max_tokens, seconds, of_owner
        self._kept: dict[int, Place] = {}  # the one that was used longest ago first
        self._in_use: set[Place] = set()
        self._line: dict[bytes, float] = {}  # until when an owner's place in it is good
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept) + len(self._in_use)

    @property
    def tokens(self) -> int:
        """Of all rooms."""
        with self._lock:
            return sum(place.tokens for place in (*self._kept.values(), *self._in_use))

    @property
    def waiting(self) -> int:
        """Owners that wait for room."""
        return len(self._line)

    def reserve(self, owner: bytes, tokens: int) -> Room:
        """Room for so many tokens, or a place in the line."""
        with self._lock:
            self.expire()
            if tokens > self._max_tokens:
                return Room(0, self._max_tokens)
            self._forget_oldest(owner)
            now = time.monotonic()
            self._line[owner] = now + LINE_SECONDS
            ahead = list(self._line).index(owner)
            if ahead or not self._makes_room(tokens, now):
                return Room(0, self._max_tokens, ahead)
            del self._line[owner]
            place = Place(owner, tokens, now, now + self._seconds)
            return Room(self._keep(place), self._max_tokens)

    @contextmanager
    def use(self, owner: bytes, number: int, begun: bool = True) -> Iterator[Place]:
        """The room of this number, which has another one after the block; an error ends it.

        Args:
            begun: whether prompts have been read into it.

        Raises:
            CacheGoneError: the owner has no such room, or its time is over.
        """
        with self._lock:
            self.expire()
            place = self._kept.get(number)
            if place is None or place.owner != owner or (place.answers is not None) != begun:
                raise CacheGoneError(f"{number} is not here any more")
            del self._kept[number]
            self._in_use.add(place)
        try:
            yield place
            with self._lock:
                place.end = time.monotonic() + self._seconds
                self._keep(place)
        finally:
            with self._lock:
                self._in_use.discard(place)

    @contextmanager
    def awaited(self, owner: bytes, number: int) -> Iterator[None]:
        """A call that uses this room waits for its turn in the block: it is not the client's."""
        with self._lock:
            place = self._kept.get(number)
            if place is None or place.owner != owner:
                place = None
            else:
                place.calls += 1
        try:
            yield
        finally:
            if place is not None:
                with self._lock:
                    place.calls -= 1
                    place.end = time.monotonic() + self._seconds

    def release(self, owner: bytes, number: int) -> None:
        """Forget the owner's room of this number, if it is here."""
        with self._lock:
            if (place := self._kept.get(number)) is not None and place.owner == owner:
                del self._kept[number]

    def expire(self) -> None:
        """Forget rooms, and places in the line, whose time is over."""
        with self._lock:
            now = time.monotonic()
            self._kept = {n: p for n, p in self._kept.items() if p.end >= now or p.calls}
            self._line = {owner: end for owner, end in self._line.items() if end >= now}

    def shrink(self, place: Place, sequences: int) -> bool:
        """The device had no memory for this room beside the others: from now on there is less.

        Returns:
            Whether it is of use to try again; not where one sequence does not fit alone.
        """
        with self._lock:
            others = self.tokens - place.tokens
            if not others and sequences == 1:
                return False
            self._max_tokens = max(others, place.tokens) if others else place.tokens // 2
            log.warning(
                "the LLM host has too little memory for the answers of %d tokens at once: from now "
                "on %d are under way together",
                others + place.tokens,
                self._max_tokens,
            )
            return True

    def _keep(self, place: Place) -> int:
        place.number = secrets.randbits(63)
        self._kept[place.number] = place
        return place.number

    def _forget_oldest(self, owner: bytes) -> None:
        own = [number for number, place in self._kept.items() if place.owner == owner]
        for number in own[: max(0, len(own) + 1 - self._of_owner)] if self._of_owner else ():
            del self._kept[number]

    def _makes_room(self, tokens: int, now: float) -> bool:
        """Whether so many fit, once those that have had their room for long have given it up."""
        old = [n for n, p in self._kept.items() if p.answers and p.since + self._seconds < now]
        while self.tokens + tokens > self._max_tokens:
            if not old:
                return False
            del self._kept[old.pop(0)]
        return True
