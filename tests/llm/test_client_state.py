"""What the host keeps for a client between two calls: for whom, how many and how long."""

from __future__ import annotations

import gc
import weakref
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.exchange import step_in_two
from fednano_flwr.exchange.lowrank import LowRankInputs
from fednano_flwr.exchange.protocol import (
    IGNORE,
    CacheGoneError,
    Gradient,
    GraphGoneError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
    NewToken,
)
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.client_state import CachedAnswer, Caches, Graph, Graphs
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf

NEXT = NewToken(5, torch.ones(1, 48))


def batch() -> tuple[EmbeddingInputs, Tensor]:
    labels = torch.full((14,), IGNORE)
    labels[torch.tensor([3, 4, 13])] = torch.tensor([7, 8, 9])
    return EmbeddingInputs(torch.randn(14, 48, generator=torch.manual_seed(0)), (5, 9)), labels


def prompt(tokens: int = 6) -> EmbeddingInputs:
    return EmbeddingInputs(torch.randn(tokens, 48, generator=torch.manual_seed(0)), (tokens,))


def low_rank(rank: int = 2) -> LowRankInputs:
    z, b = {"text": torch.ones(3, rank)}, {"text": torch.ones(48, rank)}
    return LowRankInputs(torch.tensor([4, 5, 6]), torch.zeros(3).bool(), (), z, b, (3,))


def graph() -> Graph:
    return cast(Graph, object.__new__(Graph))


def answer(tokens: int) -> CachedAnswer:
    return CachedAnswer(cast(Any, None), tokens, cast(Any, None))


def test_a_graph_is_its_owners_latest_and_is_taken_once() -> None:
    graphs = Graphs()
    first = graphs.keep(b"a", graph())
    other = graphs.keep(b"b", graph())
    latest = graphs.keep(b"a", graph())
    for owner, number in ((b"a", first), (b"a", other), (b"c", latest)):
        with pytest.raises(GraphGoneError):
            graphs.take(owner, number)
    graphs.take(b"a", latest)
    with pytest.raises(GraphGoneError):
        graphs.take(b"a", latest)
    assert len(graphs) == 1


def test_an_owners_oldest_answer_gives_way_to_its_latest() -> None:
    caches = Caches(of_owner=2)
    begun = [caches.keep(b"a", answer(6)) for _ in range(3)]
    other = caches.keep(b"b", answer(6))
    assert len(caches) == 3 and caches.tokens == 18
    with pytest.raises(CacheGoneError):
        caches.take(b"a", begun[0])
    for number, owner in ((begun[1], b"a"), (begun[2], b"a"), (other, b"b")):
        caches.take(owner, number)


@pytest.mark.parametrize("states", [Graphs(limit=2), Caches(limit=2, of_owner=1)])
def test_states_are_bounded_in_number_and_an_owner_can_always_begin_again(states: Any) -> None:
    for owner in (b"a", b"b", b"a"):
        states.make_room(owner)
        states.keep(owner, graph())
    with pytest.raises(HostBusyError, match=f"2 {states.what}"):
        states.make_room(b"c")


def test_answers_under_way_are_bounded_in_tokens() -> None:
    caches = Caches(max_tokens=20)
    for owner in (b"a", b"b"):
        caches.make_room_for(owner, 6)
        caches.keep(owner, answer(6))
    with pytest.raises(HostBusyError, match=r"12 tokens.*20 \(llm\.max-tokens"):
        caches.make_room_for(b"c", 9)
    with pytest.raises(ValueError, match=r"20 tokens.*20 \(llm\.max-tokens"):
        caches.make_room_for(b"b", 21)
    caches.make_room_for(b"a", 14)  # in the place of its own
    assert caches.tokens == 6


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


def test_states_whose_client_does_not_come_back_are_forgotten(llm_half: LLMHalf) -> None:
    graphs, caches = Graphs(limit=1, seconds=0.05), Caches(seconds=0.05)
    host = FrozenLLM(llm_half, graphs=graphs, caches=caches)
    inputs, _ = batch()
    with QueuedLLM(host) as queued:
        left = queued.prefill(prompt(), b"vanished").cache
        number, _ = queued.forward(inputs, torch.tensor([13]), b"vanished")
        kept = weakref.ref(graphs._kept[number].state.logits)
        for _ in range(100):
            if not len(graphs) and not len(caches):
                break
            torch.ones(1), gc.collect()
            with queued._changed:
                queued._changed.wait(0.1)
        assert not len(graphs) and not len(caches) and kept() is None
        assert queued.forward(inputs, torch.tensor([13]), b"next")[0] != number
        with pytest.raises(GraphGoneError):
            queued.backward(number, torch.zeros(1, 64), b"vanished")
        with pytest.raises(CacheGoneError):
            queued.decode(left, NEXT, b"vanished")


class Forgetful:
    """A host that loses the first few graphs, as one that was restarted would."""

    def __init__(self, host: FrozenLLM, losses: int) -> None:
        self._host, self.losses = host, losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def backward(self, number: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        if self.losses:
            self.losses -= 1
            self._host.graphs.make_room(owner)
        return self._host.backward(number, gradient, owner)


def test_a_step_whose_graph_was_lost_is_repeated_until_it_is_no_use(llm_half: LLMHalf) -> None:
    host = FrozenLLM(llm_half)
    expected = host.step(*batch())
    with serve(cast(Any, Forgetful(host, losses=2))) as address, RemoteLLM(address) as remote:
        loss, gradient = step_in_two(remote, *batch())
    assert loss == pytest.approx(expected[0], rel=1e-6)
    assert torch.equal(*gradient, *expected[1])
    with serve(cast(Any, Forgetful(host, losses=100))) as address, RemoteLLM(address) as remote:
        with pytest.raises(HostRefusedError, match="labels-at"):
            step_in_two(remote, *batch())


def test_a_client_that_finds_too_many_graphs_open_is_told_the_bound(llm_half: LLMHalf) -> None:
    host = FrozenLLM(llm_half, graphs=Graphs(limit=1))
    with serve(host) as address, RemoteLLM(address, Caller(node=1)) as first:
        first.forward(batch()[0], torch.tensor([13]))
        with RemoteLLM(address, Caller(node=2), retry_seconds=0.3) as second:
            with pytest.raises(HostUnreachableError, match="1 graphs"):
                second.forward(batch()[0], torch.tensor([13]))


def test_a_gradient_of_another_shape_and_several_samples_for_one_answer_are_refused(
    llm_half: LLMHalf,
) -> None:
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address) as remote:
        number, _ = remote.forward(batch()[0], torch.tensor([13]))
        with pytest.raises(HostRefusedError, match=r"shape \(2, 64\).*\(1, 64\)"):
            remote.backward(number, torch.zeros(2, 64))
        with pytest.raises(HostRefusedError, match="2 samples"):
            remote.prefill(batch()[0])


@pytest.mark.parametrize(
    ("inputs", "token", "says"),
    [
        (prompt(), NewToken(5, torch.ones(1, 2)), "the prompt was embeddings"),
        (prompt(), NewToken(5, torch.ones(1, 47)), "the prompt was embeddings"),
        (prompt(), NewToken(5, torch.ones(2, 48)), r"shape \(2, 48\)"),
        (prompt(), NewToken(99, torch.ones(1, 48)), "token 99 is out of range"),
        (low_rank(), NEXT, r"z of shape \(1, 48\)"),
        (low_rank(), NewToken(5), "the prompt was low-rank"),
        (low_rank(), NewToken(5, torch.ones(1, 3)), r"z of shape \(1, 3\).*rank 2"),
        (low_rank(), NewToken(5, torch.ones(3, 2)), r"shape \(3, 2\)"),
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
