"""Answers under way: what the host keeps of them, for whom, how many and how long."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fednano_flwr.exchange.generation import NewToken
from fednano_flwr.exchange.protocol import (
    CacheGoneError,
    HostBusyError,
    HostRefusedError,
    LLMInputs,
    LowRankInputs,
)
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.caches import Caches
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf

NEXT = NewToken(5, embedding=torch.ones(1, 48))


def prompt(tokens: int = 6) -> LLMInputs:
    return LLMInputs(torch.randn(tokens, 48, generator=torch.manual_seed(0)), (tokens,))


def low_rank(rank: int = 2) -> LowRankInputs:
    z, b = {"text": torch.ones(3, rank)}, {"text": torch.ones(48, rank)}
    return LowRankInputs(torch.tensor([4, 5, 6]), torch.zeros(3).bool(), (), z, b, (3,))


def test_a_cache_is_taken_once_and_by_its_owner_alone(llm_half: LLMHalf) -> None:
    host = FrozenLLM(llm_half)
    first = host.prefill(prompt(), b"a")
    with pytest.raises(CacheGoneError):
        host.decode(first.cache, NEXT, b"b")
    second = host.decode(first.cache, NEXT, b"a")
    assert second.cache != first.cache
    with pytest.raises(CacheGoneError):  # a call that is repeated, as after a lost connection
        host.decode(first.cache, NEXT, b"a")
    host.decode(second.cache, NEXT, b"a")


def test_an_owners_oldest_answer_gives_way_to_its_latest(llm_half: LLMHalf) -> None:
    host = FrozenLLM(llm_half, caches=Caches(of_owner=2))
    begun = [host.prefill(prompt(), b"a").cache for _ in range(3)]
    other = host.prefill(prompt(), b"b").cache
    assert len(host.caches) == 3 and host.caches.tokens == 18
    with pytest.raises(CacheGoneError):
        host.decode(begun[0], NEXT, b"a")
    for cache, owner in ((begun[1], b"a"), (begun[2], b"a"), (other, b"b")):
        host.decode(cache, NEXT, owner)


def test_answers_under_way_are_bounded_in_number_and_in_tokens(llm_half: LLMHalf) -> None:
    host = FrozenLLM(llm_half, caches=Caches(limit=2, max_tokens=20))
    host.prefill(prompt(), b"a")
    host.prefill(prompt(), b"b")
    with pytest.raises(HostBusyError, match=r"2 answers under way"):
        host.prefill(prompt(), b"c")
    host = FrozenLLM(llm_half, caches=Caches(max_tokens=20))
    host.prefill(prompt(), b"a")
    host.prefill(prompt(), b"b")
    with pytest.raises(HostBusyError, match=r"2 answers under way hold 12 tokens.*20 \(llm\.max"):
        host.prefill(prompt(9), b"c")
    host.prefill(prompt(14), b"a")  # in the place of its own
    assert host.caches.tokens == 20
    with pytest.raises(ValueError, match=r"after 20 tokens.*20 \(llm\.max-tokens"):
        host.prefill(prompt(21), b"b")


def test_an_answer_whose_client_does_not_come_back_is_forgotten(llm_half: LLMHalf) -> None:
    host = FrozenLLM(llm_half, caches=Caches(seconds=0.05))
    with QueuedLLM(host) as queued:
        left = queued.prefill(prompt(), b"vanished").cache
        for _ in range(100):
            if not len(host.caches):
                break
            with queued._changed:
                queued._changed.wait(0.1)
        assert not len(host.caches)
        with pytest.raises(CacheGoneError):
            queued.decode(left, NEXT, b"vanished")


@pytest.mark.parametrize(
    ("inputs", "token", "says"),
    [
        (prompt(), NewToken(5, z=torch.ones(1, 2)), "the prompt was embeddings"),
        (prompt(), NewToken(5, embedding=torch.ones(1, 47)), r"shape \(1, 47\)"),
        (prompt(), NewToken(5, embedding=torch.ones(2, 48)), r"shape \(2, 48\)"),
        (prompt(), NewToken(99, embedding=torch.ones(1, 48)), "token 99 is out of range"),
        (low_rank(), NEXT, "the prompt was low-rank"),
        (low_rank(), NewToken(5), "the prompt was low-rank"),
        (low_rank(), NewToken(5, z=torch.ones(1, 3)), r"z of shape \(1, 3\).*rank 2"),
        (low_rank(), NewToken(5, z=torch.ones(3, 2)), r"shape \(3, 2\)"),
    ],
)
def test_a_token_that_does_not_fit_its_prompt_is_refused(
    llm_half: LLMHalf, inputs: Any, token: NewToken, says: str
) -> None:
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address, Caller(node=1)) as remote:
        begun = remote.prefill(inputs)
        with pytest.raises(HostRefusedError, match=says):
            remote.decode(begun.cache, token)
        remote.prefill(inputs)  # the session goes on


def test_several_samples_are_not_one_answers(llm_half: LLMHalf) -> None:
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address) as remote:
        with pytest.raises(HostRefusedError, match="2 samples"):
            remote.prefill(LLMInputs(torch.ones(6, 48), (2, 4)))
