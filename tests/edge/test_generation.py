"""Answers of many clients at once where the host has room for few."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fednano_flwr.edge.generation import generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.exchange import exchange
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.errors import NoRoomError
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import LLMInfo, LLMService
from fednano_flwr.llm.caches import Caches
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf

WAIT = 20.0
TOKENS = 6


class Owned(LLMService):
    """A service for one owner."""

    def __init__(self, service: LLMService, owner: bytes) -> None:
        self._service, self._own = service, owner
        self.reserved = 0

    def describe(self) -> LLMInfo:
        return self._service.describe()

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        self.reserved += method == "reserve"
        return getattr(self._service, method)(*arguments, self._own)


@pytest.fixture
def asked(questions: list[Question], edge: NanoEdge) -> Iterator[list[Question]]:
    with mock.patch.object(edge.encoder, "ends", set()):
        yield questions[:4]


@pytest.fixture
def expected(edge: NanoEdge, llm_half: LLMHalf, asked: list[Question]) -> list[str]:
    return generate(edge, EmbeddingsExchange(FrozenLLM(llm_half)), asked, TOKENS)


def room(questions: list[Question]) -> int:
    return len(questions) * (max(len(question.ids) for question in questions) + TOKENS - 1)


def test_fifty_clients_that_answer_at_once_all_get_through_a_small_limit(
    edge: NanoEdge,
    llm_half: LLMHalf,
    asked: list[Question],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "LONGEST_PAUSE", 0.05)
    caches = Caches(max_tokens=2 * room(asked) + 1)
    most, ended, number = [0], [], count()
    together = threading.Barrier(50)
    with QueuedLLM(FrozenLLM(llm_half, caches=caches)) as queued:

        def client() -> int:
            service = Owned(queued, f"{next(number)}".encode())
            together.wait(WAIT)
            for _ in range(2):
                assert generate(edge, LowRankExchange(service), asked, TOKENS) == expected
                most[0] = max(most[0], caches.tokens)
            ended.append(time.monotonic())
            return service.reserved

        with ThreadPoolExecutor(50) as pool:
            waits = [answer.result(4 * WAIT) for answer in [pool.submit(client) for _ in range(50)]]
    assert len(ended) == 50 and max(waits) > 4  # they did wait
    assert 0 < most[0] <= 2 * room(asked) and not len(caches) and not caches.waiting


def test_a_batch_larger_than_the_limit_is_answered_in_parts_and_a_question_is_refused(
    edge: NanoEdge, llm_half: LLMHalf, asked: list[Question], expected: list[str]
) -> None:
    one = max(room([question]) for question in asked)
    for caches in (Caches(max_tokens=room(asked) - 1), Caches(max_tokens=one)):
        llm = LowRankExchange(FrozenLLM(llm_half, caches=caches))
        assert generate(edge, llm, asked, TOKENS) == expected
    llm = LowRankExchange(FrozenLLM(llm_half, caches=Caches(max_tokens=one - 1)))
    with pytest.raises(NoRoomError, match=rf"1 × {one} tokens.* {one - 1} .*llm\.max-tokens"):
        generate(edge, llm, asked, TOKENS)


def test_where_memory_ends_before_the_limit_answers_take_turns_and_are_the_same(
    edge: NanoEdge,
    llm_half: LLMHalf,
    asked: list[Question],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    healthy, memory = llm_half.next_logits, room(asked) - 3

    def next_logits(embeds: Tensor, *rest: Any) -> Tensor:
        if caches.tokens > memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return healthy(embeds, *rest)

    monkeypatch.setattr(llm_half, "next_logits", next_logits)
    for others in (True, False):
        caches = Caches()
        host = FrozenLLM(llm_half, caches=caches)
        llm = LowRankExchange(Owned(host, b"b"))
        if others:
            number = host.reserve(memory, b"a").cache
            threading.Timer(0.3, host.release, [number, b"a"]).start()
        batch = 2 if others else 4
        assert generate(edge, llm, asked[:batch], TOKENS) == expected[:batch]
        assert len([r for r in caplog.records if "too little memory" in r.message]) == 1
        caplog.clear()
    memory = 3
    with pytest.raises(ValueError, match=r"too little memory.*llm\.checkpointing"):
        generate(edge, llm, asked[:1], TOKENS)
    assert not len(caches)
