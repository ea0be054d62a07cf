"""What the host received of a client's training, beside what the client had.

A `Recorder` sits before the language model, behind the wire; a `Witness` before the exchange, at
the client. Calls come one at a time, so what one saw last belongs to what the other did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.audit.attack import answers_of_gradient
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.lowrank import LowRankInputs
from fednano_flwr.exchange.protocol import (
    IGNORE,
    LLM,
    AdaptedBatch,
    FrozenBatch,
    Generated,
    Inputs,
    LLMInfo,
    LLMService,
    at_site,
)


@dataclass(frozen=True)
class Seen:
    """One training step as the host sees it.

    Attributes:
        inputs: decoded from the wire.
        answers: tokens (P,) as the host reads them: the labels that it was sent, or what the
            gradient with respect to the logits shows.
    """

    inputs: Inputs
    answers: Tensor


class Recorder(LLMService):
    """An `LLMService` that remembers the last training step it answered."""

    def __init__(self, service: LLMService) -> None:
        self._service = service
        self._first_half: Inputs | None = None
        self._seen: Seen | None = None

    def take(self) -> Seen:
        """The last step, once."""
        assert self._seen is not None, "no step has arrived"
        seen, self._seen = self._seen, None
        return seen

    def describe(self) -> LLMInfo:
        return self._service.describe()

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        result = getattr(self._service, method)(*arguments, owner)
        match method, arguments:
            case "step", (inputs, labels):
                self._seen = Seen(inputs, labels[labels != IGNORE].clone())
            case "forward", (inputs, _):
                self._first_half = inputs
            case "backward", (_, gradient):
                assert self._first_half is not None
                self._seen = Seen(self._first_half, answers_of_gradient(gradient))
        return result


@dataclass
class Prompt:
    """One question's text, and what the host received of it.

    Attributes:
        tokens: (n,) what it is.
        answers: (m,) tokens of its right answer.
        image_rows: how many rows of image features came with it.
        read_answers: (m,) as the host read them at first.
        received: (n, d) rows of the first time; or token ids (n,), where those are sent.
        total: sum of what was received `count` times.
    """

    tokens: Tensor
    answers: Tensor
    image_rows: int
    read_answers: Tensor
    received: Tensor
    total: Tensor
    count: int = 1

    @property
    def mean(self) -> Tensor:
        """What is left of all observations; token ids stay what they are."""
        return self.total / self.count if self.total.is_floating_point() else self.received


@dataclass
class Ledger:
    """A client's prompts, each with up to `most` observations.

    The host is granted that it tells which of them are of one question: lengths, shapes and, at
    last, the rows themselves say so.
    """

    most: int
    prompts: dict[tuple[object, ...], Prompt] = field(default_factory=dict)

    def note(self, batch: AdaptedBatch, labels: Tensor, seen: Seen) -> None:
        """Add a step: what the client had, and what the host saw of it."""
        ids, is_text = batch.token_ids.cpu(), at_site(batch.sites, "text").cpu()
        rows = _text_rows(seen.inputs, is_text)
        texts = is_text.split(batch.layout.lengths)
        counts = [int(text.sum()) for text in texts]
        known = [own[own != IGNORE] for own in labels.cpu().split(batch.layout.lengths)]
        answers = seen.answers.cpu().split([len(own) for own in known])
        features = iter(batch.features)
        for own, text, received, right, read in zip(
            ids.split(batch.layout.lengths), texts, rows.split(counts), known, answers, strict=True
        ):
            pictured = not bool(text.all())
            key = (next(features).key if pictured else b"", *own.tolist(), *right.tolist())
            self._add(key, Prompt(own[text], right, int((~text).sum()), read, received, received))

    def _add(self, key: tuple[object, ...], seen: Prompt) -> None:
        known = self.prompts.setdefault(key, seen)
        if known is not seen and known.count < self.most:
            known.total = known.total + seen.received
            known.count += 1


def _text_rows(inputs: Inputs, is_text: Tensor) -> Tensor:
    """What arrived of the text: rows (n, d), or token ids (n,)."""
    if isinstance(inputs, EmbeddingInputs):
        return inputs.embeds[is_text].float()
    assert isinstance(inputs, LowRankInputs)
    return inputs.token_ids


class Witness:
    """An `LLM` that notes each training step of a client, and what a recorder saw of it."""

    def __init__(self, llm: LLM, recorder: Recorder, ledger: Ledger) -> None:
        self._llm, self._recorder, self._ledger = llm, recorder, ledger

    def prepare(self, batch: FrozenBatch) -> None:
        self._llm.prepare(batch)

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        loss = self._llm.loss(batch, labels)
        self._ledger.note(batch, labels, self._recorder.take())
        return loss

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        return self._llm.score(batch, positions, candidates)

    def token_losses(
        self, batch: AdaptedBatch, positions: Tensor, tokens: Tensor, secret: bool = True
    ) -> Tensor:
        return self._llm.token_losses(batch, positions, tokens, secret)

    def prefill(self, batch: AdaptedBatch, most: int) -> Generated:
        return self._llm.prefill(batch, most)

    def decode(self, cache: int, sequences: Tensor, tokens: AdaptedBatch) -> Generated:
        return self._llm.decode(cache, sequences, tokens)

    def release(self, cache: int) -> None:
        self._llm.release(cache)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another; an empty list of tokens where there are none."""
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=torch.int64)
