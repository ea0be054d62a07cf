"""One client's questions, tokenized, without those that cannot be used."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.config import Dataset
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.shard import Shard
from fednano_flwr.edge.encoder import QuestionEncoder, encode_all
from fednano_flwr.edge.fit import Fit
from fednano_flwr.edge.questions import Limits
from fednano_flwr.edge.stored_questions import StoredQuestions


@dataclass(frozen=True)
class ClientSpec:
    """What distinguishes one client from the others; "" and 0 where it has nothing of its own.

    Attributes:
        partition: which shard of the data is this client's.
        num_partitions: how many there are.
        data_path: folder of this client's shard, written by `fednano partition`, or a file of rows
            of its own.
        edge_path: folder of an edge bundle, written by `fednano split`.
        rank: of its adapters; 0 where `adapter.ranks` decides.
    """

    partition: int = 0
    num_partitions: int = 1
    data_path: str = ""
    edge_path: str = ""
    rank: int = 0


def too_many(left_out: int, count: int, max_skipped: float) -> bool:
    """Whether more are left out of so many questions than the share, rounded up, allows."""
    return left_out > math.ceil(round(max_skipped * count, 6))


@dataclass(frozen=True)
class EncodedShard:
    """A client's questions, tokenized, and those that were left out.

    Attributes:
        skipped: those of the whole data set, counted by reason.
        left_out: this shard's own, id and reason of each.
        max_skipped: which share of the shard, rounded up, may be left out.

    Raises:
        DataError: more questions are left out.
    """

    train: StoredQuestions
    test: StoredQuestions
    skipped: Counter[str]
    left_out: list[tuple[str, str]]
    max_skipped: float

    def __post_init__(self) -> None:
        count = len(self.train) + len(self.test) + len(self.left_out)
        if not too_many(len(self.left_out), count, self.max_skipped):
            return
        reasons = "; ".join(
            f"{len(ids)}: {reason} ({first_few(ids)})" for ids, reason in by_reason(self.left_out)
        )
        raise DataError(
            f"{len(self.left_out)} of this client's {count} questions cannot be used: {reasons}; "
            f"dataset.max-skipped allows {self.max_skipped:.0%}"
        )

    @classmethod
    def encode(
        cls, encoder: QuestionEncoder, shard: Shard, skipped: Counter[str], dataset: Dataset
    ) -> EncodedShard:
        """Tokenize a shard; what is too long, or nothing for the model, is left out."""
        train, left_out = encode_all(encoder, shard.train, Fit.of(dataset))
        test, more = encode_all(encoder, shard.test, Fit.of(dataset))
        return cls(train, test, skipped, [*left_out, *more], dataset.max_skipped)

    def within(self, limits: Limits) -> EncodedShard:
        """The same without the questions that the host would refuse."""
        train, left_out = self.train.within(limits)
        test, more = self.test.within(limits)
        skipped, left_out = self.skipped, [*self.left_out, *left_out, *more]
        return EncodedShard(train, test, skipped, left_out, self.max_skipped)
