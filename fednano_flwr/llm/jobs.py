"""One request to the language model: cut into samples, put together when all are served.

A forward pass serves samples of one or of several requests. What a request gets does not depend on
which samples shared a pass with its own, but for rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano_flwr.exchange.protocol import (
    IGNORE,
    STILL_WANTED,
    Embedded,
    Gradient,
    Inputs,
    Layout,
)
from fednano_flwr.llm.sessions import Session

Result = TypeVar("Result")
KindOfPass = tuple[bool, int, bool, int]


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence of a request.

    Attributes:
        job: the request.
        index: its number in it.
        start, length: its rows of the request's tokens.
        asked: (p,) which of the request's positions lie in it.
    """

    job: Job[Any]
    index: int
    start: int
    length: int
    asked: Tensor

    @property
    def positions(self) -> Tensor:
        """(p,) rows of this sequence whose logits are asked for."""
        return self.job.positions[self.asked] - self.start

    def rows(self, values: Tensor) -> Tensor:
        """Its part (T, d) of the request's rows (N, d)."""
        return values[self.start : self.start + self.length]

    @property
    def layout(self) -> Layout:
        """Its part of the request's layout."""
        return self.job.layouts[self.index]


class Request(Generic[Result]):
    """Something that a client waits for.

    Attributes:
        owner: who asks.
        tokens: what it counts as.
        future: of its result.
        is_wanted: whether the client still waits for it.
        kind: of call, as in fednano.proto.
        asked: when it was made, by `time.monotonic`.
    """

    kind = ""

    def __init__(self, tokens: int, owner: bytes) -> None:
        self.owner, self.tokens = owner, tokens
        self.future: Future[Result] = Future()
        self.is_wanted = STILL_WANTED.get()
        self.asked = time.monotonic()

    def fail(self, error: BaseException) -> None:
        """The request cannot be served; the first reason counts."""
        if not self.future.done():
            self.future.set_exception(error)


class Task(Request[Result]):
    """Something to do at once and alone, in its turn."""

    def __init__(
        self, work: Callable[[], Result], tokens: int, owner: bytes, kind: str = ""
    ) -> None:
        super().__init__(tokens, owner)
        self.kind = kind
        self._work = work

    def run(self) -> None:
        """Do it; its error is its own."""
        try:
            self.future.set_result(self._work())
        except Exception as error:
            self.fail(error)


class Job(Request[Result]):
    """Sequences on their way through the language model.

    Attributes:
        trains: whether their rows need a gradient.
        positions: (P,) rows of the request's tokens whose logits are asked for.
        embedded: its rows, once its first sample is served.
        session: that it is a step of, once its first sample is served.
    """

    trains = False

    def __init__(self, inputs: Inputs, positions: Tensor, owner: bytes) -> None:
        super().__init__(inputs.layout.tokens, owner)
        self.inputs = inputs
        self.positions = positions.cpu()
        self.embedded: Embedded | None = None
        self.session: Session | None = None
        self._unserved = len(inputs.layout.lengths)

    @property
    def kind_of_pass(self) -> KindOfPass:
        """Samples of unlike kinds cannot share a pass."""
        layout, axes = self.inputs.layout, 0
        if layout.position_ids is not None:
            axes = len(layout.position_ids)
        part, turn = self.inputs.at_host, self.inputs.turn
        # A step of a session is alone: also beside itself, where it was asked for again.
        lora = id(self if turn else part.lora if part else None)
        return self.trains, axes, layout.token_type_ids is not None, lora

    @cached_property
    def layouts(self) -> list[Layout]:
        """Of each sample, once the request is embedded."""
        assert self.embedded is not None
        return self.embedded.layout.split()

    def samples(self) -> list[Sample]:
        """All its sequences, in order."""
        lengths = self.inputs.layout.lengths
        ends = torch.tensor(lengths).cumsum(0)
        where = torch.searchsorted(ends, self.positions, right=True)
        counts = torch.bincount(where, minlength=len(lengths)).tolist()
        asked = where.argsort(stable=True).split(counts)
        return [
            Sample(self, i, end - length, length, asked[i])
            for i, (end, length) in enumerate(zip(ends.tolist(), lengths, strict=True))
        ]

    def served(self, count: int) -> None:
        """Note that `count` samples are done; after the last one the result is there."""
        self._unserved -= count
        if not self._unserved and not self.future.done():
            try:
                self.future.set_result(self.result())
            except Exception as error:
                self.fail(error)

    def result(self) -> Result:
        """What goes back to the client."""
        raise NotImplementedError


class ReadJob(Job[Tensor]):
    """Something of the logits at each position."""

    def __init__(self, inputs: Inputs, positions: Tensor, owner: bytes) -> None:
        super().__init__(inputs, positions, owner)
        self._found: dict[int, Tensor] = {}
        self._order: dict[int, Tensor] = {}

    def take(self, sample: Sample, logits: Tensor) -> None:
        """Keep what is asked of a sample's logits (p, vocabulary)."""
        self._found[sample.index] = self.read(logits, sample.asked).cpu()
        self._order[sample.index] = sample.asked

    def read(self, logits: Tensor, asked: Tensor) -> Tensor:
        """What is asked of logits (p, vocabulary), one row a position.

        Args:
            asked: (p,) which of the request's positions they are of.
        """
        raise NotImplementedError

    def result(self) -> Tensor:
        order = torch.cat([self._order[i] for i in sorted(self._order)])
        found = torch.cat([self._found[i] for i in sorted(self._found)])
        return found[order.argsort()]


class ScoreJob(ReadJob):
    """Log-probabilities of candidate tokens, or of all where there are none."""

    kind = "score"

    def __init__(self, inputs: Inputs, positions: Tensor, candidates: Tensor, owner: bytes) -> None:
        super().__init__(inputs, positions, owner)
        self._candidates = candidates

    def read(self, logits: Tensor, asked: Tensor) -> Tensor:
        likely = logits.log_softmax(1)
        return likely[:, self._candidates.to(likely.device)] if len(self._candidates) else likely


class TokenLossesJob(ReadJob):
    """−log p of a token at each position."""

    kind = "token_losses"

    def __init__(self, inputs: Inputs, positions: Tensor, tokens: Tensor, owner: bytes) -> None:
        super().__init__(inputs, positions, owner)
        self._tokens = tokens

    def read(self, logits: Tensor, asked: Tensor) -> Tensor:
        tokens = self._tokens[asked].to(logits.device)
        return F.cross_entropy(logits, tokens, reduction="none")


class StepJob(Job[tuple[float, Gradient]]):
    """Mean cross-entropy of the labels, and its gradient."""

    kind = "step"
    trains = True

    def __init__(self, inputs: Inputs, labels: Tensor, owner: bytes) -> None:
        labels = labels.cpu()
        super().__init__(inputs, (labels != IGNORE).nonzero().squeeze(1), owner)
        self._labels = labels
        self._losses: list[float] = []
        self._gradients: dict[int, Tensor] = {}
        self._of_session: list[Tensor] = []

    def loss(self, samples: list[Sample], logits: Tensor) -> Tensor:
        """What these samples, with logits (p, vocabulary), add to the request's mean."""
        labels = self._labels[self.positions[torch.cat([s.asked for s in samples])]]
        if not len(labels):
            return logits.sum()  # of nothing: 0, and so are the gradients
        mean = F.cross_entropy(logits, labels.to(logits.device))
        share = len(labels) / len(self.positions)
        return mean if share == 1 else mean * share

    def take(
        self,
        samples: list[Sample],
        loss: float,
        gradients: list[Tensor],
        of_session: Sequence[Tensor] = (),
    ) -> None:
        """Keep the loss of some samples and the gradients (T, d) of their rows.

        Args:
            of_session: their gradient of the parameters that the session trains.
        """
        self._losses.append(loss)
        self._gradients |= {s.index: g for s, g in zip(samples, gradients, strict=True)}
        if self._of_session:
            pairs = zip(self._of_session, of_session, strict=True)
            self._of_session = [before + one for before, one in pairs]
        else:
            self._of_session = list(of_session)

    def result(self) -> tuple[float, Gradient]:
        assert self.embedded is not None
        rows = torch.cat([self._gradients[i] for i in sorted(self._gradients)])
        gradient = self.embedded.gradient(rows)
        if self.session is not None and self.inputs.turn is not None:
            gradient = (*gradient, self.session.computed(self.inputs.turn, self._of_session))
        return math.fsum(self._losses), gradient


JOBS: Mapping[str, Callable[..., Job[Any]]] = {
    job.kind: job for job in (StepJob, ScoreJob, TokenLossesJob)
}
"""The calls of an `LLMService` that are jobs: the owner is the last argument."""
