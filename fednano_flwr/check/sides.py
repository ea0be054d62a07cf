"""What the whole model computes of some questions, and what its two halves compute together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from fednano_flwr.adapters.site import named_trainable
from fednano_flwr.check.unsplit import Unsplit
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.generation import greedy
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import (
    Question,
    answer_positions,
    next_token_labels,
    teacher_forced,
)
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import EdgeHalf
from fednano_flwr.models.llm_half import LLMHalf

TOKENS = 8
"""Of each generated answer."""


@dataclass(frozen=True)
class Cost:
    """What a part holds, and how long it takes for one step with all questions."""

    name: str
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What one side computes of the questions.

    Attributes:
        scores: (questions, vocabulary) log-probabilities after each prompt.
        gradients: of the adapters' parameters.
        answers: a generated one of each question.
        written: (questions · TOKENS, vocabulary) log-probabilities of their tokens as they were
            generated.
        read: the same, with the whole answer given as in training.
    """

    scores: Tensor
    loss: float
    gradients: dict[str, Tensor]
    answers: list[list[int]]
    written: Tensor
    read: Tensor


class _Recording(LLMHalf):
    """Keeps the logits (questions, vocabulary) of each pass over answers under way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.passes: list[Tensor] = []

    def next_logits(self, *arguments: Any) -> Tensor:
        self.passes.append(super().next_logits(*arguments))
        return self.passes[-1]


def whole(
    checkpoint: ModelCheckpoint,
    encoder: QuestionEncoder,
    questions: Sequence[Question],
    adapters: PeftModel,
) -> tuple[Outcome, Cost]:
    """What the model itself computes, one question at a time and without any padding."""
    model = Unsplit(checkpoint.folder, checkpoint.family)
    scores, losses = [], []
    with model.adapted(adapters):
        begun = time.perf_counter()
        for question in questions:
            logits = model.next_logits(question, encoder)
            loss = F.cross_entropy(logits, torch.tensor(question.answer[0]))
            (loss / len(questions)).backward()
            losses.append(loss.item())
            scores.append(logits.detach().log_softmax(0))
        seconds = time.perf_counter() - begun
        gradients = _gradients(adapters)
        answers = [model.generate(question, encoder, TOKENS) for question in questions]
    written = torch.cat([logits for _, logits in answers]).log_softmax(1)
    outcome = Outcome(
        torch.stack(scores),
        sum(losses) / len(losses),
        gradients,
        [tokens for tokens, _ in answers],
        written,
        written,
    )
    return outcome, Cost("whole model", _nbytes(model.model), seconds)


def halves(
    checkpoint: ModelCheckpoint,
    encoder: QuestionEncoder,
    questions: Sequence[Question],
    adapters: PeftModel,
) -> tuple[Outcome, tuple[Cost, Cost]]:
    """What client and host compute together, all questions in one batch."""
    cpu, dtype = torch.device("cpu"), torch.float32
    frozen, half = EdgeHalf(checkpoint, cpu, dtype), _Recording(checkpoint, cpu, dtype)
    edge = NanoEdge(frozen, frozen.token_table(), adapters, encoder)
    llm = LowRankExchange(FrozenLLM(half))
    begun = time.perf_counter()
    batch = edge(questions, teacher_forced(questions))
    embedded = time.perf_counter()
    loss = llm.loss(batch, next_token_labels(questions, IGNORE))
    answered = time.perf_counter()
    loss.backward()
    gradients = _gradients(adapters)
    answers = _generated(edge, llm, questions)
    answered_so = [replace(q, answer=tuple(own)) for q, own in zip(questions, answers, strict=True)]
    outcome = Outcome(
        _scores(edge, llm, questions),
        loss.item(),
        gradients,
        answers,
        torch.stack(half.passes, dim=1).flatten(0, 1).log_softmax(1),
        _scores(edge, llm, answered_so),
    )
    client = Cost("client's half", _nbytes(frozen) + _nbytes(edge.tokens), embedded - begun)
    return outcome, (client, Cost("server's half", _nbytes(half), answered - embedded))


def _generated(edge: NanoEdge, llm: LowRankExchange, questions: Sequence[Question]) -> list[list]:
    found: list[list[int]] = [[] for _ in questions]
    for step in greedy(edge, llm, questions, TOKENS):
        for index, token in step.items():
            found[index].append(token)
    return found


@torch.no_grad()
def _scores(edge: NanoEdge, llm: LowRankExchange, questions: Sequence[Question]) -> Tensor:
    """(tokens, vocabulary) log-probabilities that each token of the answers comes from."""
    batch = edge(questions, teacher_forced(questions))
    every = torch.empty(0, dtype=torch.int64)
    return llm.score(batch, answer_positions(questions), every)


def _gradients(adapters: PeftModel) -> dict[str, Tensor]:
    """Taken off the adapters.

    Raises:
        ValueError: an adapter took no part.
    """
    found = {}
    for name, parameter in named_trainable(adapters).items():
        if parameter.grad is None or not parameter.grad.any():
            raise ValueError(f"{name} has no gradient: nothing passes this adapter")
        found[name], parameter.grad = parameter.grad, None
    return found


def _nbytes(module: nn.Module) -> int:
    """Of its parameters and buffers, each once."""
    every = [*module.parameters(), *module.buffers()]
    return sum({id(one): one.nbytes for one in every}.values())
