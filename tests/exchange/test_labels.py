"""Labels that stay at the client: what is sent then, and what it shows all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fednano_flwr.exchange.embeddings import EmbeddingInputs, EmbeddingsExchange
from fednano_flwr.exchange.exchange import step_in_two
from fednano_flwr.exchange.protocol import IGNORE, AdaptedBatch, Layout
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf

ANSWERS = {4: 61, 13: 62}


@pytest.fixture
def requests(llm_half: LLMHalf) -> list[Any]:
    """What a step sends, and what the losses of answers do."""
    labels = torch.full((14,), IGNORE)
    for position, answer in ANSWERS.items():
        labels[position] = answer
    with serve(FrozenLLM(llm_half)) as address, RemoteLLM(address) as remote:
        remote.describe()
        sent: list[Any] = []
        answer = remote._answer
        remote._answer = lambda call: sent.append(call) or answer(call)  # type: ignore[method-assign, func-returns-value]
        rows, places = torch.randn(14, 48), torch.zeros(14, dtype=torch.int64)
        batch = AdaptedBatch(rows, places.bool(), places, (), Layout((5, 9)), {}, {})
        inputs, found = EmbeddingInputs(rows, Layout((5, 9))), list[torch.Tensor]()
        remote.step(inputs, labels)
        step_in_two(remote, inputs, labels)
        positions, answers = torch.tensor(list(ANSWERS)), torch.tensor(list(ANSWERS.values()))
        for labels_at in ("server", "client"):
            llm = EmbeddingsExchange(remote, labels_at)
            found.append(llm.token_losses(batch, positions, answers))
        assert (found[0] - found[1]).abs().max() < 1e-5
        llm.token_losses(batch, positions, answers, secret=False)
    return [getattr(call, call.WhichOneof("what")) for call in sent]


def test_label_ids_are_sent_only_where_they_may(requests: list[Any]) -> None:
    assert [type(request) for request in requests] == [
        pb.StepRequest,
        pb.ForwardRequest,
        pb.BackwardRequest,
        pb.TokenLossesRequest,
        pb.ScoreRequest,
        pb.TokenLossesRequest,
    ]
    answers = list(ANSWERS.values())
    assert list(requests[0].labels) == answers
    assert [list(requests[i].tokens) for i in (3, 5)] == [answers, answers]
    for request in (requests[1], requests[2], requests[4]):
        fields = {field.name for field, _ in request.ListFields()}
        assert fields <= {"header", "inputs", "positions", "graph", "gradient", "dtype"}


def test_the_gradient_of_the_logits_still_shows_the_labels(requests: list[Any]) -> None:
    """Cross-entropy's gradient is softmax minus one-hot: docs/threat-model.md says so."""
    gradient = codec.decode(requests[2].gradient)
    assert (gradient < 0).sum(1).tolist() == [1, 1]
    assert gradient.argmin(1).tolist() == list(ANSWERS.values())
