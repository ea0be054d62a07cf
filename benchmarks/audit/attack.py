"""Reading text and answers back from what the host receives.

The host knows the token table, and the adapters, since the server merges and sends them. So a
received row x is some token's adapted embedding, but for rounding and what the client has trained:

    guess(x) = argmin_t ‖x − (e_t + s B A e_t)‖     over the vocabulary

A host that also asks its language model which word is likely to follow there reads more still.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fednano_flwr.adapters.product import Factors

ROWS_AT_ONCE, TOKENS_AT_ONCE = 2048, 4096


@dataclass(frozen=True)
class Shares:
    """Shares of what was read right; None where there is nothing of that kind.

    Attributes:
        all: of all text tokens.
        content: of those that do not occur in every question, as a prompt's template does.
        distinct: mean over the distinct tokens of the share of each one's occurrences.
    """

    all: float | None
    content: float | None
    distinct: float | None


def candidates(
    embed: Callable[[Tensor], Tensor],
    vocabulary: int,
    factors: Factors | None,
    scale: float,
    at_once: int = TOKENS_AT_ONCE,
) -> Iterator[Tensor]:
    """What each token looks like when it arrives, (at most `at_once`, d) float32 in their order.

    Args:
        embed: token ids (c,) to frozen embeddings (c, d).
        factors: A (r, d) and B (d, r) of the text adapter; None where text has none.
        scale: s = alpha / rank.
    """
    for start in range(0, vocabulary, at_once):
        rows = embed(torch.arange(start, min(vocabulary, start + at_once))).detach().float()
        if factors is not None:
            rows = rows + scale * (rows @ factors.a.to(rows).T) @ factors.b.to(rows).T
        yield rows


def nearest(rows: Tensor, chunks: Iterable[Tensor], rows_at_once: int = ROWS_AT_ONCE) -> Tensor:
    """Index (n,) of the candidate nearest to each row; of equal ones the first.

    Needs memory for `rows_at_once` times a chunk of candidates, whatever the vocabulary.

    Args:
        rows: (n, d).
        chunks: candidates (c, d), one part after another.
    """
    rows = rows.float()
    best, found = torch.full((len(rows),), torch.inf), torch.zeros(len(rows), dtype=torch.int64)
    start = 0
    for chunk in chunks:
        offset = chunk.square().sum(1) / 2
        for low in range(0, len(rows), rows_at_once):
            part = slice(low, low + rows_at_once)
            distance = offset - rows[part] @ chunk.T  # without ‖x‖² / 2, which all have
            least = distance.amin(1, keepdim=True)
            place = (distance == least).int().argmax(1)
            closer = least.squeeze(1) < best[part]
            best[part] = torch.where(closer, least.squeeze(1), best[part])
            found[part] = torch.where(closer, start + place, found[part])
        start += len(chunk)
    return found


def answers_of_gradient(gradient: Tensor) -> Tensor:
    """Labels (P,) from a loss's gradient with respect to the logits (P, vocabulary).

    Cross-entropy's is softmax minus one-hot: only the label's entry is negative.
    """
    return gradient.argmin(1)


def in_every(texts: Sequence[Tensor]) -> set[int]:
    """Tokens that occur in each of some texts; none for a single one, which says nothing of it."""
    if len(texts) < 2:
        return set()
    return set.intersection(*(set(text.tolist()) for text in texts))


def shares(guesses: Tensor, truth: Tensor, template: Collection[int]) -> Shares:
    """How many tokens (n,) were guessed right.

    Args:
        template: tokens that do not count as content.
    """
    right = guesses == truth
    content = ~torch.isin(truth, torch.tensor(sorted(template), dtype=truth.dtype))
    kinds, place = truth.unique(return_inverse=True)
    asked = torch.zeros(len(kinds)).index_add(0, place, torch.ones(len(truth)))
    hits = torch.zeros(len(kinds)).index_add(0, place, right.float())
    return Shares(_mean(right), _mean(right[content]), _mean(hits / asked))


def most_frequent(truth: Tensor, template: Collection[int]) -> Shares:
    """Shares of who guesses the most frequent token everywhere, without looking.

    Of the content, the most frequent token of the content.
    """
    if not len(truth):
        return Shares(None, None, None)
    template_ids = torch.tensor(sorted(template), dtype=truth.dtype)
    content = truth[~torch.isin(truth, template_ids)]
    plain = shares(truth.mode().values.expand_as(truth), truth, template)
    blind = _mean(content == content.mode().values) if len(content) else None
    return Shares(plain.all, blind, plain.distinct)


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
