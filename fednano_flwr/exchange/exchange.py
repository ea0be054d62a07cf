"""The client's side that all exchanges share: an `LLM` on top of any `LLMService`.

`exchange.labels-at` says where the answers of training and scoring stay. At the server, a step is
one round trip: batch and label ids up, loss and gradient down. At the client, it is two: the host
returns the logits at the answers' positions, the client computes the loss and sends its gradient
with respect to them, and the host carries that on to its inputs. In scoring, the client then looks
the answers up among the log-probabilities of all tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fednano_flwr.exchange.at_host import Turn
from fednano_flwr.exchange.errors import (
    FeaturesMissingError,
    GraphGoneError,
    HostRefusedError,
    NoRoomError,
)
from fednano_flwr.exchange.protocol import (
    IGNORE,
    AdaptedBatch,
    FrozenBatch,
    Generated,
    Gradient,
    Inputs,
    LLMService,
    NewTokens,
)

Answer = TypeVar("Answer")
TRIES = 4
PAUSE, LONGEST_PAUSE = 0.01, 1.0
"""Seconds between two questions whether there is room, for each client whose turn has to come."""


@dataclass
class Turns:
    """A session as its client counts it, from step to step.

    Attributes:
        session: its number at the host.
        updates, measures: of the steps to come, as in `Turn`.
        squares: squared norm of the latest step's gradient at the host.
        factor: by which the client has scaled that step's gradients down.
        number: of that step.
    """

    session: int
    updates: bool = True
    measures: bool = False
    squares: float = 0.0
    factor: float = 1.0
    number: int = 0

    def next(self) -> Turn:
        """That of the next step."""
        self.number += 1
        turn = Turn(self.session, self.number, self.factor, self.updates, self.measures)
        self.factor = 1.0
        return turn


class Exchange:
    """An `LLM`; a subclass says what it sends of a batch.

    Args:
        labels_at: "server" or "client".

    Attributes:
        turns: of the session that each loss is a step of, between `begin` and `end`.
    """

    inputs: ClassVar[type[Inputs]]

    def __init__(self, service: LLMService, labels_at: str = "server") -> None:
        self.service = service
        self._labels_at = labels_at
        self._step = service.step if labels_at == "server" else partial(step_in_two, service)
        self.turns: Turns | None = None
        self._prepared = set[bytes]()
        self._sending = threading.Lock()

    def prepare(self, batch: FrozenBatch) -> None:
        fresh = {f.key: f for f in batch.features if f.key not in self._prepared}
        if self.inputs.HAS_HIDDEN and fresh:
            with self._sending:
                service = self.service.beside()
                lacking = set(service.lacks(list(fresh)))
                service.keep_features([one for key, one in fresh.items() if key in lacking])
            self._prepared.update(fresh)

    def begin(self) -> Turns:
        """Begin a session, once the host has room for it: from now on each loss is a step of it.

        A step raises SessionGoneError where the host no longer has it.
        """
        while not (session := self.service.begin(None)):
            time.sleep(LONGEST_PAUSE)
        self.turns = Turns(session)
        return self.turns

    def end(self) -> int:
        """End the session; returns its number, by which the server knows its result."""
        assert self.turns is not None, "no session has begun"
        self.service.end(self.turns.next())
        session, self.turns = self.turns.session, None
        return session

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        inputs, turns = self.inputs.of(batch), self.turns
        turn = turns.next() if turns else None

        def step() -> tuple[float, Gradient]:
            def ask(sent: Inputs) -> tuple[float, Gradient]:
                return self._step(sent.with_(turn=turn), labels)

            loss, found = self._answer(batch, inputs, ask)
            if turns is not None:
                *gradient, squares = found
                found, turns.squares = tuple(gradient), float(squares)
            return loss, found

        if not inputs.leaves:  # nothing to train takes part in this batch
            return torch.tensor(step()[0])
        return _HostLoss.apply(step, *inputs.leaves)

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        ask = partial(self.service.score, positions=positions, candidates=candidates)
        return self._answer(batch, self.inputs.of(batch), ask)

    def token_losses(
        self, batch: AdaptedBatch, positions: Tensor, tokens: Tensor, secret: bool = True
    ) -> Tensor:
        if secret and self._labels_at == "client":
            every = self.score(batch, positions, torch.empty(0, dtype=torch.int64))
            if (largest := int(tokens.max())) >= every.shape[1]:
                raise HostRefusedError(
                    "the LLM host's answer cannot be used: it has log-probabilities of "
                    f"{every.shape[1]} tokens, and an answer has token {largest}"
                )
            return -every.gather(1, tokens[:, None]).squeeze(1)
        ask = partial(self.service.token_losses, positions=positions, tokens=tokens)
        return self._answer(batch, self.inputs.of(batch), ask)

    def prefill(self, batch: AdaptedBatch, most: int) -> Generated:
        count, longest = len(batch.layout.lengths), max(batch.layout.lengths)
        ask = partial(self.service.prefill, self._room(count, longest + most - 1))
        return self._answer(batch, self.inputs.of(batch), ask)

    def decode(self, cache: int, sequences: Tensor, tokens: AdaptedBatch) -> Generated:
        rows = self.inputs.token_rows(tokens)
        rows = None if rows is None else rows.detach()
        new = NewTokens(sequences, tokens.token_ids.cpu(), rows, tokens.layout.position_ids)
        return self.service.decode(cache, new)

    def release(self, cache: int) -> None:
        self.service.release(cache)

    def _room(self, count: int, tokens: int) -> int:
        """Number of room at the host for `count` sequences of so many tokens; waited for."""
        while not (room := self.service.reserve(count * tokens)).cache:
            if count * tokens > room.most:
                raise NoRoomError(
                    f"{count} × {tokens} tokens of prompts with their answers; the LLM host has "
                    f"room for {room.most} (llm.max-tokens)"
                )
            time.sleep(min(PAUSE * (room.ahead + 1), LONGEST_PAUSE))
        return room.cache

    def _answer(
        self, batch: AdaptedBatch, inputs: Inputs, ask: Callable[[Inputs], Answer]
    ) -> Answer:
        """The host's answer; features that it lacks are sent first.

        Meanwhile nothing is sent ahead, which could push these out again.
        """
        sent = inputs.detach()
        with ExitStack() as alone:
            for attempt in range(TRIES):
                try:
                    return ask(sent)
                except FeaturesMissingError as missing:
                    wanted = set(missing.keys)
                if not attempt:
                    alone.enter_context(self._sending)
                factors = [f for one in batch.named.values() for f in one[:2] if f is not None]
                has = {feature.key: feature for feature in (*batch.features, *factors)}
                self.service.keep_features([f for key, f in has.items() if key in wanted])
        raise HostRefusedError(
            f"the LLM host did not keep the features of one batch of {len(batch.features)} "
            "pictured questions: raise llm.feature-memory-mb, or lower batch-size"
        )


def step_in_two(service: LLMService, inputs: Inputs, labels: Tensor) -> tuple[float, Gradient]:
    """As `LLMService.step`, the labels (N,) staying here.

    Raises:
        HostRefusedError: the host lost the first half several times.
    """
    positions = (labels.cpu() != IGNORE).nonzero().squeeze(1)
    answers = labels.cpu()[positions]
    for _ in range(TRIES):
        graph, logits = service.forward(inputs, positions)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = F.cross_entropy(leaf, answers)
        (gradient,) = torch.autograd.grad(loss, leaf)
        try:
            return loss.item(), service.backward(graph, gradient)
        except GraphGoneError:
            continue
    raise HostRefusedError(
        f"the LLM host lost the first half of a step {TRIES} times before the second came: "
        'use exchange.labels-at = "server"'
    )


class _HostLoss(torch.autograd.Function):
    """The host's loss as a node of the client's graph; its gradient came with the loss."""

    @staticmethod
    def forward(ctx: Any, step: Callable[[], tuple[float, Gradient]], *leaves: Tensor) -> Tensor:
        loss, gradient = step()
        ctx.save_for_backward(*(g.to(leaf) for g, leaf in zip(gradient, leaves, strict=True)))
        return leaves[0].new_tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        return None, *(gradient * scale.to(gradient) for gradient in ctx.saved_tensors)
