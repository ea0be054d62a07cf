"""Bytes of what clients and server send each other: the formulas of docs/exchange.md, and overhead.

Everything is a mean, so counts may be fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

FLOAT32 = 4
KEY_BYTES = 16  # of a picture's features at the host
FACTOR_KEY_BYTES = 30  # of a named factor, its scale in shares
CALL_BYTES = 50  # header of a request: protocol, run, node, round
TENSOR_BYTES = 20  # of a tensor on the wire beside its numbers: dtype, shape, tags
ANSWER_BYTES = 3  # of an answer beside what it holds
HELLO_BYTES = 75  # a client introduces itself to the host, once a message; as many come back
ARRAY_BYTES = 170  # of an array in a Flower record beside its numbers: NumPy's header, name, dtype
TASK_BYTES = 85  # of a message's other parts: round, address
TRAINED_BYTES, SCORED_BYTES = 380, 445  # metrics of the replies


@dataclass(frozen=True)
class Traffic:
    """Bytes from a client (up) and to it (down)."""

    up: float = 0.0
    down: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)

    def __mul__(self, times: float) -> Traffic:
        return Traffic(self.up * times, self.down * times)

    @property
    def both(self) -> float:
        return self.up + self.down


@dataclass(frozen=True)
class Model:
    """What is trained, and how its numbers are sent.

    Attributes:
        hidden_size, rank: d and r.
        vocabulary: number of token ids.
        wire_bytes: of a number of the step traffic (`exchange.dtype`).
        sites: adapters, one each.
        in_turns: rounds train A alone and B alone in turns (`rolora`); sizes are their means.
        read_size: numbers a token that a connector at the host reads; 0: features are sent.
    """

    hidden_size: int
    rank: int
    vocabulary: int
    wire_bytes: float
    sites: int = 2
    in_turns: bool = False
    read_size: int = 0

    @property
    def numbers(self) -> int:
        """Trained parameters: A (r, d) and B (d, r) a site."""
        return self.sites * 2 * self.rank * self.hidden_size

    @property
    def token_id_bytes(self) -> float:
        """Of a token id as protobuf writes it, 7 bits a byte; mean over the vocabulary."""
        ends = [0, *(2 ** (7 * n) for n in range(1, 6))]
        counts = [max(0, min(self.vocabulary, b) - a) for a, b in pairwise(ends)]
        return sum(n * count for n, count in enumerate(counts, 1)) / self.vocabulary


@dataclass(frozen=True)
class Question:
    """A question's tokens; `pictured` is the share of questions with a picture."""

    image_tokens: float
    text_tokens: float
    pictured: float = 1.0
    options: float = 4.0

    @property
    def tokens(self) -> float:
        return self.pictured * self.image_tokens + self.text_tokens


def batch_up(
    exchange: str, model: Model, question: Question, batch: float, trained: float = 1.0
) -> float:
    """Bytes of a batch as sent, without labels: docs/exchange.md has the formulas.

    Args:
        trained: share of the factors that is; the others are named.
    """
    if exchange == "embeddings":
        numbers = batch * question.tokens * model.hidden_size
        return CALL_BYTES + TENSOR_BYTES + 2 * batch + numbers * model.wire_bytes
    keys = batch * question.pictured * (KEY_BYTES + 2)
    ids = batch * question.text_tokens * model.token_id_bytes
    names = 2 * (1 - trained) * _sites(model, question, batch) * FACTOR_KEY_BYTES
    return CALL_BYTES + 4 * batch + keys + ids + names + trained * _factors(model, question, batch)


def step_traffic(exchange: str, model: Model, question: Question, batch: float) -> Traffic:
    """A training step whose features, where the exchange needs any, are at the host."""
    trained = 0.5 if model.in_turns else 1.0
    up = batch_up(exchange, model, question, batch, trained) + batch * 4
    if exchange == "embeddings":
        numbers = batch * question.tokens * model.hidden_size
        return Traffic(up, numbers * model.wire_bytes + TENSOR_BYTES + ANSWER_BYTES + 5)
    return Traffic(up, trained * _factors(model, question, batch) + ANSWER_BYTES + 5)


def score_traffic(exchange: str, model: Model, question: Question, batch: float) -> Traffic:
    """Scoring a batch of questions by the logits of their options; all factors are named."""
    up = batch_up(exchange, model, question, batch, 0.0) + 2 * batch + 2 * question.options
    return Traffic(up, batch * question.options * FLOAT32 + TENSOR_BYTES + ANSWER_BYTES)


def features_traffic(exchange: str, model: Model, question: Question, batch: float) -> Traffic:
    """What is sent on top the first time: which features the host lacks, and these."""
    if exchange == "embeddings":
        return Traffic()
    pictures = batch * question.pictured
    each = question.image_tokens * (model.read_size or model.hidden_size) * model.wire_bytes
    each += TENSOR_BYTES + 2 * KEY_BYTES
    asked = pictures * (KEY_BYTES + 2)
    return Traffic(2 * CALL_BYTES + asked + pictures * each, asked + 2 * ANSWER_BYTES)


def _factors(model: Model, question: Question, batch: float) -> float:
    """z (or its gradient) of every token, and B of each site that occurs in the batch."""
    sites = _sites(model, question, batch)
    numbers = batch * question.tokens * model.rank + sites * model.hidden_size * model.rank
    return numbers * model.wire_bytes + sites * (2 * TENSOR_BYTES + 10)


def _sites(model: Model, question: Question, batch: float) -> float:
    """That occur in a batch."""
    return 2 - (1 - question.pictured) ** batch if model.sites == 2 else 1


def training_messages(model: Model, fisher: bool) -> Traffic:
    """Round traffic of one client's training: adapters down; adapters, and Fisher, up."""
    adapters = _adapters(model)
    return Traffic(adapters * (2 if fisher else 1) + TRAINED_BYTES, adapters + TASK_BYTES)


def evaluation_messages(model: Model) -> Traffic:
    """Round traffic of one client's evaluation: adapters down, metrics up."""
    return Traffic(SCORED_BYTES, _adapters(model) + TASK_BYTES)


def _adapters(model: Model) -> float:
    """Bytes of one record of adapters."""
    return FLOAT32 * model.numbers + 2 * model.sites * ARRAY_BYTES
