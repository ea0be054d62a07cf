"""Room for answers under way: who gets it, for how long, and what waits meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.errors import CacheGoneError, HostRefusedError
from fednano_flwr.exchange.lowrank import LowRankInputs
from fednano_flwr.exchange.protocol import Layout, NewTokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm import caches as module
from fednano_flwr.llm.caches import Caches
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf

ONE = torch.tensor([0])


def prompt(*lengths: int) -> EmbeddingInputs:
    rows = torch.randn(sum(lengths), 48, generator=torch.manual_seed(0))
    return EmbeddingInputs(rows, Layout(lengths))


def new(*sequences: int, size: int = 48) -> NewTokens:
    which = torch.tensor(sequences)
    return NewTokens(which, which + 5, torch.ones(len(sequences), size))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Seconds, as the caches see them."""
    now = mock.Mock(return_value=0.0)
    monkeypatch.setattr(module, "time", mock.Mock(monotonic=now))
    return now


def test_nobody_overtakes_in_the_line_and_all_get_room_in_their_turn(clock: Any) -> None:
    caches = Caches(max_tokens=20)
    first = caches.reserve(b"a", 15).cache
    assert first and caches.tokens == 15
    assert not caches.reserve(b"b", 12).cache
    assert caches.reserve(b"c", 2) == (0, 20, 1) and caches.waiting == 2  # there would be room
    caches.release(b"b", first)
    assert caches.tokens == 15  # it is not b's
    caches.release(b"a", first)
    assert not caches.reserve(b"a", 15).cache
    assert not caches.reserve(b"c", 2).cache
    assert caches.reserve(b"b", 12).cache and caches.reserve(b"c", 2).cache
    assert caches.waiting == 1 and caches.tokens == 14
    clock.return_value = module.LINE_SECONDS + 1  # a is not asking any more
    assert caches.reserve(b"d", 6).cache


def test_a_batch_that_never_fits_is_told_and_holds_nobody_up() -> None:
    caches = Caches(max_tokens=20)
    assert caches.reserve(b"a", 21) == (0, 20, 0) and not caches.waiting
    assert caches.reserve(b"b", 20).cache


def test_a_clients_latest_room_replaces_its_earlier_one_unless_several_share_its_token() -> None:
    alone, shared = Caches(max_tokens=20), Caches(max_tokens=20, of_owner=0)
    for caches, tokens in ((alone, 8), (shared, 16)):
        assert caches.reserve(b"a", 8).cache and caches.reserve(b"a", 8).cache
        assert caches.tokens == tokens
    assert not shared.reserve(b"a", 8).cache


def test_an_answer_gives_its_room_up_after_a_while_where_others_wait(
    clock: Any, llm_half: LLMHalf
) -> None:
    caches = Caches(max_tokens=20)
    host = FrozenLLM(llm_half, caches=caches)
    found = host.prefill(host.reserve(20, b"a").cache, prompt(5), b"a")
    for clock.return_value in (40.0, 80.0):  # it goes on, and nobody waits
        found = host.decode(found.cache, new(0), b"a")
    assert host.reserve(10, b"b").cache
    with pytest.raises(CacheGoneError):
        host.decode(found.cache, new(0), b"a")
    assert not host.reserve(20, b"a").cache  # b has not had its time
    clock.return_value += module.SECONDS + 1  # and does not go on
    assert host.reserve(20, b"a").cache


def test_the_time_that_a_call_waits_for_its_turn_is_not_the_clients(clock: Any) -> None:
    caches = Caches(max_tokens=20)
    number = caches.reserve(b"a", 20).cache
    with caches.awaited(b"a", number), caches.awaited(b"b", number), caches.awaited(b"a", 7):
        clock.return_value = 10 * module.SECONDS
        assert not caches.reserve(b"b", 5).cache
    with caches.use(b"a", number, begun=False):
        pass
    assert caches.tokens == 20


def test_a_cache_is_used_once_and_by_its_owner_alone(llm_half: LLMHalf) -> None:
    host = FrozenLLM(llm_half)
    place = host.reserve(20, b"a").cache
    with pytest.raises(CacheGoneError):  # nothing has been read into it
        host.decode(place, new(0), b"a")
    first = host.prefill(place, prompt(6), b"a")
    for owner, cache in ((b"b", first.cache), (b"a", place)):
        with pytest.raises(CacheGoneError):
            host.decode(cache, new(0), owner)
    with pytest.raises(CacheGoneError):  # it has prompts already
        host.prefill(first.cache, prompt(6), b"a")
    second = host.decode(first.cache, new(0), b"a")
    assert second.cache != first.cache
    with pytest.raises(CacheGoneError):  # a call that is repeated, as after a lost connection
        host.decode(first.cache, new(0), b"a")
    host.decode(second.cache, new(0), b"a")
    assert len(host.caches) == 1


def test_more_than_room_was_reserved_for_is_refused_and_gives_the_room_back(
    llm_half: LLMHalf,
) -> None:
    host = FrozenLLM(llm_half)
    with pytest.raises(ValueError, match=r"2 answers of 6 tokens.* 11"):  # padding counts
        host.prefill(host.reserve(11).cache, prompt(6, 4))
    found = host.prefill(host.reserve(14).cache, prompt(6, 4))
    found = host.decode(found.cache, new(0, 1))
    with pytest.raises(ValueError, match=r"2 answers of 8 tokens.* 14"):
        host.decode(found.cache, new(0, 1))
    assert not len(host.caches)


@pytest.mark.parametrize("sequences", [(0, 2), (1, 0), (1, 1)])
def test_sequences_that_are_not_kept_are_refused(
    llm_half: LLMHalf, sequences: tuple[int, ...]
) -> None:
    host = FrozenLLM(llm_half)
    found = host.prefill(host.reserve(20).cache, prompt(6, 4))
    with pytest.raises(ValueError, match="do not ascend among the 2"):
        host.decode(found.cache, new(*sequences))


def low_rank() -> LowRankInputs:
    z, b = {"text": torch.ones(3, 2)}, {"text": torch.ones(48, 2)}
    return LowRankInputs(
        torch.tensor([4, 5, 6]), torch.ones(3, dtype=torch.int8), (), z, b, Layout((3,))
    )


@pytest.mark.parametrize(
    ("inputs", "token", "says"),
    [
        (prompt(6), new(0, size=2), "the prompt was embeddings"),
        (prompt(6), NewTokens(ONE, ONE), "the prompt was embeddings"),
        (low_rank(), new(0), r"z of shape \(1, 48\).*rank 2"),
        (low_rank(), NewTokens(ONE, ONE), "the prompt was low-rank"),
    ],
)
def test_a_token_that_does_not_fit_its_prompt_is_refused(
    llm_half: LLMHalf, inputs: Any, token: NewTokens, says: str
) -> None:
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address, Caller(node=1)) as remote:
        begun = remote.prefill(remote.reserve(20).cache, inputs)
        with pytest.raises(HostRefusedError, match=says):
            remote.decode(begun.cache, token)
        remote.prefill(remote.reserve(20).cache, inputs)  # the session goes on
