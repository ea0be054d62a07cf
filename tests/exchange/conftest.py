from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch

from fednano_flwr.adapters.site import build_adapters, randomize
from fednano_flwr.config import Adapter, Dataset
from fednano_flwr.data.load import load_questions
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.exchange.protocol import Gradient
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.edge_half import EdgeHalf
from fednano_flwr.models.llm_half import LLMHalf
from tests.exchange.stand_in import StandIn

RUN, NODE, OTHER = 5, 7, 8
MakeEdge = Callable[..., NanoEdge]
Remote = Callable[..., RemoteLLM]


def same_bits(one: tuple[float, Gradient], other: tuple[float, Gradient]) -> bool:
    """Whether two steps have one gradient; the loss crosses the wire in float32."""
    (loss, gradient), (wanted, right) = one, other
    near = abs(loss - wanted) <= 1e-6 * abs(wanted)
    return near and all(torch.equal(g, r) for g, r in zip(gradient, right, strict=True))


@pytest.fixture(scope="session")
def questions(tiny_dataset: Dataset, encoder: QuestionEncoder) -> list[Question]:
    return [encoder.encode(s) for s in load_questions(tiny_dataset).train[:8]]


@pytest.fixture
def make_edge(edge_half: EdgeHalf, encoder: QuestionEncoder) -> MakeEdge:
    """A client's half whose adapters change something, unless `scale` is 0."""

    def make(sites: str = "image,text", scale: float = 0.3, half: EdgeHalf = edge_half) -> NanoEdge:
        adapters = build_adapters(48, Adapter(4, 8.0, 0.0, sites), seed=3)
        randomize(adapters, scale, seed=4)
        return NanoEdge(half, half.token_table(), adapters, encoder)

    return make


@pytest.fixture
def edge(make_edge: MakeEdge) -> NanoEdge:
    return make_edge()


@pytest.fixture
def host(llm_half: LLMHalf) -> FrozenLLM:
    return FrozenLLM(llm_half, max_tokens=1000)


@pytest.fixture
def remote(host: FrozenLLM) -> Iterator[RemoteLLM]:
    with serve(host) as address, RemoteLLM(address, Caller(1, 7), retry_seconds=0.5) as remote:
        yield remote


@pytest.fixture
def service() -> StandIn:
    return StandIn()


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(RUN)


@pytest.fixture
def served(service: StandIn, tokens: Tokens) -> Iterator[Callable[..., Remote]]:
    """Serves the stand-in as `serve` is told to; returns what makes clients of it, by node."""
    with ExitStack() as stack:

        def start(**how: Any) -> Remote:
            address = stack.enter_context(serve(service, tokens=tokens, **how))
            token = stack.enter_context(tokens.open(1, "train"))
            return partial(make, address, token)

        def make(address: str, token: Any, node: int = NODE, retry: float = 0.3) -> RemoteLLM:
            caller = Caller(RUN, node, 1, "train", token(node))
            made = RemoteLLM(address, caller, "float32", retry_seconds=retry)
            return stack.enter_context(made)

        yield start
