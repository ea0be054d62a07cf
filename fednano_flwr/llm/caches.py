"""Keys and values of answers that are being generated, between the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from fednano_flwr.exchange.generation import NewToken
from fednano_flwr.exchange.protocol import CacheGoneError, HostBusyError, Inputs, LowRankInputs
from fednano_flwr.llm.between_calls import LIMIT, SECONDS, BetweenCalls
from fednano_flwr.models.llm_half import LLMHalf

OF_OWNER = 4
"""Answers that one client may have under way at once, where nothing else is asked for."""


@dataclass(frozen=True)
class Read:
    """A sequence that the language model has read.

    Attributes:
        cache: of the model's layers.
        tokens: how many it has read.
        low_rank: whether its prompt was; each token has to be as that.
        b: (d, R) of the text adapter of a low-rank prompt, where there is one.
    """

    cache: Cache
    tokens: int
    low_rank: bool
    b: Tensor | None


class Caches(BetweenCalls[Read]):
    """Sequences whose clients may go on.

    Args:
        limit, seconds, of_owner: see `BetweenCalls`.
        max_tokens: most tokens of all of them together.
    """

    what, waits_for = "answers under way", "their clients to go on"
    gone = CacheGoneError

    def __init__(
        self,
        limit: int = LIMIT,
        seconds: float = SECONDS,
        of_owner: int = OF_OWNER,
        max_tokens: int = 65536,
    ) -> None:
        super().__init__(limit, seconds, of_owner)
        self._max_tokens = max_tokens

    @property
    def tokens(self) -> int:
        """Of all sequences; may be asked for from another thread."""
        return sum(entry.thing.tokens for entry in list(self._kept.values()))

    def make_room_for(self, owner: bytes, tokens: int) -> None:
        """Forget what of the owner's one more sequence would replace, and all whose time is over.

        Raises:
            HostBusyError: the others' are too many, or have too many tokens.
            ValueError: the sequence alone has too many.
        """
        if tokens > self._max_tokens:
            raise ValueError(
                f"an answer after {tokens - 1} tokens; the host takes {self._max_tokens} "
                "(llm.max-tokens)"
            )
        self.make_room(owner)
        own = [number for number, entry in self._kept.items() if entry.owner == owner]
        while own and self.tokens + tokens > self._max_tokens:
            del self._kept[own.pop(0)]
        if self.tokens + tokens > self._max_tokens:
            raise HostBusyError(
                f"{len(self)} answers under way hold {self.tokens} tokens; all together may hold "
                f"{self._max_tokens} (llm.max-tokens)"
            )


def read_prompt(inputs: Inputs, cache: Cache) -> Read:
    """A sequence of which the model has read the prompt, one sample."""
    low_rank = isinstance(inputs, LowRankInputs)
    b = inputs.b.get("text") if isinstance(inputs, LowRankInputs) else None
    return Read(cache, sum(inputs.lengths), low_rank, b)


@torch.no_grad()
def embed_token(token: NewToken, read: Read, half: LLMHalf) -> Tensor:
    """The input embedding (1, d) of one more token, in the host's dtype.

    Raises:
        ValueError: it is not as the prompt was.
    """
    if not read.low_rank:
        if token.embedding is None or token.z is not None:
            raise ValueError("the prompt was embeddings, so each token has to be one, too")
        if token.embedding.shape != (1, half.hidden_size):
            raise ValueError(f"an embedding of shape {tuple(token.embedding.shape)}")
        return token.embedding.to(half.device, half.dtype)
    b = read.b
    if token.embedding is not None or (token.z is None) != (b is None):
        raise ValueError("the prompt was low-rank, so each token has to be, at the same sites")
    hidden = half.embed(torch.tensor([token.id], device=half.device))
    if token.z is None or b is None:
        return hidden
    if token.z.shape != (1, b.shape[1]) or token.z.dtype != b.dtype:
        raise ValueError(
            f"z of shape {tuple(token.z.shape)} in {token.z.dtype}; the prompt's B has rank "
            f"{b.shape[1]}, in {b.dtype}"
        )
    z, b = token.z.to(half.device), b.to(half.device)
    return (hidden.to(z.dtype) + z @ b.T).to(half.dtype)


def check_position(token: NewToken, half: LLMHalf) -> None:
    """
    Raises:
        ValueError: the position is not as the family's language model needs it.
    """
    axes = half.family.position_axes
    given = 0 if token.position is None else len(token.position)
    if given != axes:
        raise ValueError(f"{half.model} needs a position with {axes} axes, not {given}")
