"""A map at the host: as an adapter more that clients neither have nor send."""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

import pytest
import torch

from fednano_flwr.adapters.site import named_trainable
from fednano_flwr.edge.generation import generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, next_token_labels
from fednano_flwr.exchange.at_host import AtHost, HostMap
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import IGNORE, LLMInfo, LLMService
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from tests.exchange.conftest import NODE, RUN, MakeEdge

RANK = 7
LABELS_AT = pytest.mark.parametrize("labels_at", ["server", "client"])


def random_map(seed: int = 0) -> HostMap:
    drawn = torch.Generator().manual_seed(seed)
    return HostMap(
        {
            site: (
                torch.randn(RANK, 48, generator=drawn) * 0.2,
                torch.randn(48, RANK, generator=drawn) * 0.2,
            )
            for site in ("image", "text")
        }
    )


@pytest.fixture
def with_map_inside(make_edge: MakeEdge) -> NanoEdge:
    """A client's half that has `random_map()` as a second adapter, frozen."""
    edge, map = make_edge(), random_map()
    config = edge.adapters.peft_config["default"]
    edge.adapters.add_adapter("map", type(config)(**{**config.to_dict(), "r": RANK}))
    edge.adapters.base_model.set_adapter(["default", "map"])
    for name, parameter in edge.adapters.named_parameters():
        if ".map." in name:
            site, factor = name.split("_adapter")[0].rpartition(".")[2], int("lora_B" in name)
            scale = RANK / config.lora_alpha if factor else 1.0  # PEFT's, taken off again
            parameter.data = map.factors[site][factor] * scale
            parameter.requires_grad_(False)
    return edge


def step(exchange: Exchange, edge: NanoEdge, questions: list[Question]) -> list[torch.Tensor]:
    """Loss and gradients of the client's own adapter."""
    edge.adapters.zero_grad(set_to_none=True)
    loss = exchange.loss(edge(questions), next_token_labels(questions, IGNORE))
    loss.backward()
    named = named_trainable(edge.adapters)
    return [loss.detach(), *(p.grad.clone() for p in named.values() if p.grad is not None)]


def caller(tokens: Any, phase: str = "train") -> Caller:
    return Caller(RUN, NODE, 1, phase, tokens(NODE))


@LABELS_AT
def test_loss_and_gradients_are_those_of_a_client_that_has_the_map(
    host: FrozenLLM,
    edge: NanoEdge,
    with_map_inside: NanoEdge,
    questions: list[Question],
    tokens: Tokens,
    labels_at: str,
) -> None:
    expected = step(EmbeddingsExchange(host), with_map_inside, questions)
    without = step(LowRankExchange(host), edge, questions)
    with serve(host, tokens=tokens) as address:
        with tokens.open(1, "train", AtHost(random_map())) as token:
            with RemoteLLM(address, caller(token)) as remote:
                found = step(LowRankExchange(remote, labels_at), edge, questions)
    assert len(found) == len(expected) == 5
    for got, wanted in zip(found, expected, strict=True):
        # The two sides add up in another order.
        assert (got - wanted).abs().max() <= 3e-6 * wanted.abs().max()
    assert (found[0] - without[0]).abs() > 1e-3


@LABELS_AT
def test_a_map_costs_clients_no_byte(
    host: FrozenLLM, edge: NanoEdge, questions: list[Question], tokens: Tokens, labels_at: str
) -> None:
    traffic = []
    with serve(host, tokens=tokens) as address:
        for number, map in enumerate((None, random_map())):
            with tokens.open(1, "train", AtHost(map)) as token:
                who = Caller(RUN, NODE + number, 1, "train", token(NODE + number))
                with RemoteLLM(address, who) as remote:
                    step(LowRankExchange(remote, labels_at), edge, questions)
                    traffic.append(remote.traffic)
    without, found = traffic
    assert found.calls == without.calls
    # A graph's number, which is drawn, may take a byte more.
    assert abs(found.bytes_up - without.bytes_up) <= 8
    assert abs(found.bytes_down - without.bytes_down) <= 8


def test_an_answer_is_that_of_a_client_that_has_the_map(
    host: FrozenLLM,
    edge: NanoEdge,
    with_map_inside: NanoEdge,
    questions: list[Question],
    tokens: Tokens,
) -> None:
    with mock.patch.object(edge.encoder, "ends", set()), serve(host, tokens=tokens) as address:
        expected = generate(with_map_inside, EmbeddingsExchange(host), questions[:4], 6)
        without = generate(edge, LowRankExchange(host), questions[:4], 6)
        with tokens.open(1, "evaluate", AtHost(random_map())) as token:
            with RemoteLLM(address, caller(token, "evaluate")) as remote:
                found = generate(edge, LowRankExchange(remote), questions[:4], 6)
    assert found == expected != without


def test_embeddings_are_refused_where_there_is_a_map(
    host: FrozenLLM, edge: NanoEdge, questions: list[Question], tokens: Tokens
) -> None:
    with (
        serve(host, tokens=tokens) as address,
        tokens.open(1, "train", AtHost(random_map())) as token,
    ):
        with RemoteLLM(address, caller(token)) as remote:
            with pytest.raises(HostRefusedError, match=r'use exchange\.kind = "lowrank"'):
                step(EmbeddingsExchange(remote), edge, questions)


class Slow(LLMService):
    """Computes a call when it is told to."""

    def __init__(self, host: FrozenLLM) -> None:
        self._host, self.arrived, self.go_on = host, threading.Event(), threading.Event()

    def describe(self) -> LLMInfo:
        return self._host.describe()

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        if method == "step":
            self.arrived.set()
            assert self.go_on.wait(20)
        return getattr(self._host, method)(*arguments, owner)


def test_a_call_that_is_computed_in_the_next_phase_still_has_the_map_of_its_own(
    host: FrozenLLM, edge: NanoEdge, questions: list[Question], tokens: Tokens
) -> None:
    def loss(remote: RemoteLLM) -> float:
        batch, labels = edge(questions), next_token_labels(questions, IGNORE)
        return float(LowRankExchange(remote).loss(batch, labels))

    found, slow = list[float](), Slow(host)
    with serve(slow, tokens=tokens) as address:
        with tokens.open(1, "train", AtHost(random_map(1))) as token:
            late = RemoteLLM(address, caller(token))
            slow.go_on.set()
            expected = loss(late)
            slow.go_on.clear(), slow.arrived.clear()
            thread = threading.Thread(target=lambda: found.append(loss(late)))
            thread.start()
            assert slow.arrived.wait(20)
        with tokens.open(1, "evaluate", AtHost(random_map(2))) as token:
            slow.go_on.set()
            thread.join(20)
            with RemoteLLM(address, caller(token, "evaluate")) as remote:
                assert loss(remote) != pytest.approx(expected, rel=1e-3)
        late.close()
    assert found == [expected]
