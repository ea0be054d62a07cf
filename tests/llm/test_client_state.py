"""Graphs that the host keeps between a step's two halves: for whom, how many and how long."""

from __future__ import annotations

import gc
import weakref
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.errors import (
    CacheGoneError,
    GraphGoneError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
)
from fednano_flwr.exchange.exchange import step_in_two
from fednano_flwr.exchange.protocol import IGNORE, Gradient, Layout, NewTokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.caches import Caches
from fednano_flwr.llm.client_state import Graph, Graphs
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf


def batch() -> tuple[EmbeddingInputs, Tensor]:
    labels = torch.full((14,), IGNORE)
    labels[torch.tensor([3, 4, 13])] = torch.tensor([7, 8, 9])
    return EmbeddingInputs(
        torch.randn(14, 48, generator=torch.manual_seed(0)), Layout((5, 9))
    ), labels


def graph() -> Graph:
    return cast(Graph, object.__new__(Graph))


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


def test_graphs_are_bounded_in_number_and_an_owner_can_always_begin_again() -> None:
    graphs = Graphs(limit=2)
    for owner in (b"a", b"b", b"a"):
        graphs.make_room(owner)
        graphs.keep(owner, graph())
    with pytest.raises(HostBusyError, match="2 graphs"):
        graphs.make_room(b"c")


def test_states_whose_client_does_not_come_back_are_forgotten(llm_half: LLMHalf) -> None:
    graphs, caches = Graphs(limit=1, seconds=0.05), Caches(seconds=0.05)
    host = FrozenLLM(llm_half, graphs=graphs, caches=caches)
    (inputs, _), positions = batch(), torch.tensor([0])
    with QueuedLLM(host) as queued:
        left = queued.prefill(queued.reserve(20, b"vanished").cache, inputs, b"vanished").cache
        number, _ = queued.forward(inputs, torch.tensor([13]), b"vanished")
        kept = weakref.ref(graphs._kept[number].graph.logits)
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
            queued.decode(left, NewTokens(positions, positions, torch.ones(1, 48)), b"vanished")


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


def test_a_gradient_of_another_shape_is_refused(llm_half: LLMHalf) -> None:
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address) as remote:
        number, _ = remote.forward(batch()[0], torch.tensor([13]))
        with pytest.raises(HostRefusedError, match=r"shape \(2, 64\).*\(1, 64\)"):
            remote.backward(number, torch.zeros(2, 64))
