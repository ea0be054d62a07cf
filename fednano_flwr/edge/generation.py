"""What the language model answers: the likeliest option, or greedy text.

Prompts are sent once. The host keeps their keys and values, and each call brings the last tokens of
the answers that have not ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import isfinite

import torch
from torch import Tensor

from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, answer_positions, last_positions
from fednano_flwr.exchange.errors import (
    CacheGoneError,
    HostRefusedError,
    HostUnreachableError,
    NoRoomError,
)
from fednano_flwr.exchange.protocol import LLM, NOT_FINITE_ADVICE, FrozenBatch

TRIES = 4
NAMED = 4
"""Questions of a batch that an error names, at most."""


def generate(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    max_tokens: int,
    frozen: FrozenBatch | None = None,
) -> list[str]:
    """Answers of a batch; where the host has no room for all of it, of its halves.

    Args:
        frozen: the prompts, where they are embedded already.

    Raises:
        HostRefusedError: see `greedy`.
    """
    answers: list[list[int]] = [[] for _ in questions]
    try:
        for found in greedy(edge, llm, questions, max_tokens, frozen):
            for index, token in found.items():
                answers[index].append(token)
    except NoRoomError:
        if len(questions) == 1:
            raise
        middle = len(questions) // 2
        halves = questions[:middle], questions[middle:]
        return [text for half in halves for text in generate(edge, llm, half, max_tokens)]
    return [edge.encoder.decode(answer) for answer in answers]


def greedy(
    edge: NanoEdge,
    llm: LLM,
    questions: Sequence[Question],
    max_tokens: int,
    frozen: FrozenBatch | None = None,
) -> Iterator[dict[int, int]]:
    """The likeliest tokens of a batch's answers, one of each answer that goes on at a time.

    Where the host has lost the batch, prompts and answers so far are sent again.

    Args:
        frozen: the prompts, where they are embedded already.

    Yields:
        Tokens by number of question; an answer that has ended is left out, and so is its end.

    Raises:
        HostRefusedError: the host generated a token that the model does not have, or lost the batch
            again and again.
        NoRoomError: the host has no room for the batch.
        MissingRowError: this client does not hold a generated token's embedding.
    """
    edge.adapters.eval()
    endings: list[tuple[int, ...]] = [()] * len(questions)
    cache, kept = 0, list(range(len(questions)))  # which sequences the host has
    on = kept
    try:
        for left in range(max_tokens, 0, -1):
            if not on:
                return
            for _ in range(TRIES):
                asked, own = [questions[i] for i in on], [endings[i] for i in on]
                try:
                    with torch.no_grad():
                        if cache:
                            places = torch.tensor([kept.index(i) for i in on])
                            found = llm.decode(cache, places, edge.next_tokens(asked, own))
                        else:
                            batch = edge.adapt(frozen or edge.embed(asked, own))
                            frozen = None
                            found = llm.prefill(batch, left)
                    break
                except CacheGoneError:
                    cache = 0
            else:
                raise HostRefusedError(
                    f"the LLM host lost an answer under way {TRIES} times before its next token"
                )
            cache, kept = found.cache, on
            tokens = dict(zip(on, found.tokens.tolist(), strict=True))
            tokens = {i: token for i, token in tokens.items() if token not in edge.encoder.ends}
            _check_known(edge, tokens.values())
            on = list(tokens)
            for i, token in tokens.items():
                endings[i] = (*endings[i], token)
            yield tokens
    except HostUnreachableError:
        cache = 0  # there is nobody to tell
        raise
    finally:
        if cache:
            llm.release(cache)


def answer_tokens(edge: NanoEdge, llm: LLM, question: Question, max_tokens: int) -> Iterator[int]:
    """The likeliest tokens of one answer, each as soon as the host has it, without the end."""
    for found in greedy(edge, llm, [question], max_tokens):
        yield from found.values()


def _check_known(edge: NanoEdge, tokens: Collection[int]) -> None:
    """
    Raises:
        HostRefusedError: the model does not have one of these tokens.
    """
    count, rows = len(edge.tokens.weight), edge.tokens.ids
    if rows is None and (wrong := [token for token in tokens if token >= count]):
        raise HostRefusedError(
            f"the LLM host's answer cannot be used: it generated token {wrong[0]}, and the model "
            f"has {count}"
        )


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
