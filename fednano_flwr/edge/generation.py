"""What the language model answers: the likeliest option, or greedy text.

For text, a batch sends its whole prompts for each token, so that the host keeps nothing and
requests of many clients share a pass. One question sends its prompt once and the host keeps its
keys and values, of which it has room for a few clients' at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

import torch
from torch import Tensor

from fednano_flwr.edge.nano_edge import FrozenBatch, NanoEdge
from fednano_flwr.edge.questions import Question, answer_positions, last_positions
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import (
    LLM,
    NOT_FINITE_ADVICE,
    CacheGoneError,
    HostRefusedError,
)

NAMED = 4
"""Questions of a batch that an error names, at most."""


@torch.no_grad()
def generate(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    max_tokens: int,
    frozen: FrozenBatch | None = None,
) -> list[str]:
    """Answers of a batch; one that has ended is not sent again.

    Args:
        frozen: the prompts, where they are embedded already.
    """
    answers: list[tuple[int, ...]] = [()] * len(questions)
    unfinished = list(range(len(questions)))
    for _ in range(max_tokens):
        if not unfinished:
            break
        asked, endings = [questions[i] for i in unfinished], [answers[i] for i in unfinished]
        batch, frozen = edge.adapt(frozen or edge.embed(asked, endings)), None
        tokens = llm.next_tokens(batch, last_positions(asked, endings)).tolist()
        found = dict(zip(unfinished, tokens, strict=True))
        unfinished = [i for i, token in found.items() if token not in edge.encoder.ends]
        for index in unfinished:
            answers[index] = (*answers[index], found[index])
    return [edge.encoder.decode(answer) for answer in answers]


def answer_tokens(
    edge: NanoEdge, llm: Exchange, question: Question, max_tokens: int
) -> Iterator[int]:
    """The likeliest tokens one after another, each as soon as the host has it, without the end.

    The prompt is sent once, then each token by itself. Where the host has lost the sequence,
    prompt and answer so far are sent again.

    Raises:
        HostRefusedError: the host generated a token that the model does not have.
        MissingRowError: this client does not hold a generated token's embedding.
    """
    edge.adapters.eval()
    ending: tuple[int, ...] = ()
    cache: int | None = None
    while len(ending) < max_tokens:
        with torch.no_grad():
            if cache is None:
                found = llm.prefill(edge([question], [ending]))
            else:
                try:
                    found = llm.decode(cache, edge.next_token(question, ending))
                except CacheGoneError:
                    cache = None
                    continue
        if found.token in edge.encoder.ends:
            return
        if edge.tokens.ids is None and found.token >= len(edge.tokens.weight):
            raise HostRefusedError(
                f"the LLM host's answer cannot be used: it generated token {found.token}, and the "
                f"model has {len(edge.tokens.weight)}"
            )
        cache, ending = found.cache, (*ending, found.token)
        yield found.token


def option_scores(
    edge: NanoEdge, llm: LLM, questions: Sequence[Question], frozen: FrozenBatch
) -> list[Tensor]:
    """Log-probabilities (K,) of the letters of each question's own K options, in one call.

    Args:
        frozen: the questions, embedded.

    Raises:
        FloatingPointError: one is infinite or no number; the message names its questions.
    """
    candidates = sorted({token for question in questions for token in question.options})
    column = {token: i for i, token in enumerate(candidates)}
    positions = last_positions(questions)
    scores = llm.score(edge.adapt(frozen), positions, torch.tensor(candidates))
    finite = scores.isfinite().all(1).tolist()
    if not all(finite):
        wrong = [question for question, good in zip(questions, finite, strict=True) if not good]
        raise not_finite("logits are not finite", wrong)
    return [
        row[[column[token] for token in question.options]]
        for row, question in zip(scores, questions, strict=True)
    ]


def answer_losses(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    frozen: FrozenBatch,
    secret: bool = True,
) -> list[float]:
    """Σ −log p over the tokens of each question's answer and its end, in one call.

    Args:
        frozen: the teacher-forced questions, embedded.
        secret: see `LLM.token_losses`.

    Raises:
        FloatingPointError: one is infinite or no number; the message names its questions.
    """
    tokens = torch.tensor([token for question in questions for token in question.answer])
    losses = llm.token_losses(edge.adapt(frozen), answer_positions(questions), tokens, secret)
    sums = [float(own.sum()) for own in losses.split([len(q.answer) for q in questions])]
    if wrong := [q for q, loss in zip(questions, sums, strict=True) if not isfinite(loss)]:
        raise not_finite("the loss of an answer is not finite", wrong)
    return sums


def option_probabilities(edge: NanoEdge, llm: LLM, question: Question) -> list[float]:
    """How likely each option's letter is as the answer, among the options alone.

    Raises:
        HostRefusedError: the host's logits are not finite.
    """
    edge.adapters.eval()
    try:
        with torch.no_grad():
            (scores,) = option_scores(edge, llm, [question], edge.embed([question]))
    except FloatingPointError:
        raise HostRefusedError(
            f"the LLM host's answer cannot be used: logits are not finite: {NOT_FINITE_ADVICE}"
        ) from None
    return scores.double().softmax(0).tolist()


def not_finite(what: str, questions: Sequence[Question]) -> FloatingPointError:
    """The error for a number that is not finite; it names some of a batch's questions."""
    names = [question.sample.uid for question in questions[:NAMED]]
    more = len(questions) - len(names)
    where = ", ".join(names) + (f" and {more} more" if more else "")
    return FloatingPointError(f"{what}, at question {where}: {NOT_FINITE_ADVICE}")
