"""What holds besides the comparison of every family with its whole model (tests/models)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fednano_flwr.adapters.site import named_trainable
from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, last_positions, next_token_labels
from fednano_flwr.exchange.embeddings import EmbeddingInputs, EmbeddingsExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half
from tests.exchange.conftest import MakeEdge, same_bits
from tests.models.unsplit import Unsplit


@pytest.fixture(scope="module")
def whole(tiny_model: Path) -> Unsplit:
    return Unsplit(tiny_model, "llava", "float32")


@pytest.mark.parametrize("sites", ["image", "text"])
@pytest.mark.parametrize("batch", [slice(0, 7), slice(1, 8, 2)], ids=["both kinds", "text only"])
def test_one_adapter_alone_gets_the_whole_models_gradient(
    whole: Unsplit,
    host: FrozenLLM,
    make_edge: MakeEdge,
    encoder: QuestionEncoder,
    questions: list[Question],
    sites: str,
    batch: slice,
) -> None:
    chosen, edge = questions[batch], make_edge(sites)
    labels = next_token_labels(chosen, IGNORE)
    expected = F.cross_entropy(
        whole.logits(chosen, encoder, edge.adapters, "right"), labels[labels != IGNORE]
    )
    loss = EmbeddingsExchange(host).loss(edge(chosen), labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.requires_grad == expected.requires_grad
    if loss.requires_grad:  # an image adapter alone takes no part in a batch of text
        parameters = list(named_trainable(edge.adapters).values())
        theirs = torch.autograd.grad(expected, parameters)
        for got, wanted in zip(torch.autograd.grad(loss, parameters), theirs, strict=True):
            assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max() > 0


def test_adapters_with_zero_b_change_nothing(
    whole: Unsplit,
    host: FrozenLLM,
    make_edge: MakeEdge,
    encoder: QuestionEncoder,
    questions: list[Question],
) -> None:
    with torch.no_grad():
        inputs = EmbeddingInputs.of(make_edge(scale=0.0)(questions))
        scores = host.score(inputs, last_positions(questions), torch.arange(64))
        expected = whole.logits(questions, encoder, None, "right").log_softmax(1)
    assert (scores - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_both_services_give_the_same_bits(
    host: FrozenLLM, remote: RemoteLLM, edge: NanoEdge, questions: list[Question]
) -> None:
    inputs = EmbeddingInputs.of(edge(questions)).detach()
    labels, last = next_token_labels(questions, IGNORE), last_positions(questions)
    assert same_bits(host.step(inputs, labels), remote.step(inputs, labels))
    tokens = torch.arange(len(last))
    losses = remote.token_losses(inputs, last, tokens)
    assert torch.equal(host.token_losses(inputs, last, tokens), losses)


def test_a_question_is_scored_alike_alone_and_among_longer_ones(
    host: FrozenLLM, edge: NanoEdge, questions: list[Question]
) -> None:
    llm = EmbeddingsExchange(host)
    assert len({len(question.ids) for question in questions}) > 2
    with torch.no_grad():
        together = llm.score(edge(questions), last_positions(questions), torch.arange(64))
        for question, row in zip(questions, together, strict=True):
            alone = llm.score(edge([question]), last_positions([question]), torch.arange(64))
            assert (alone[0] - row).abs().max() <= 1e-6 * row.abs().max()


def test_bfloat16_halves_agree_within_their_dtype(
    tiny_model: Path, make_edge: MakeEdge, questions: list[Question]
) -> None:
    labels, gradients, losses = next_token_labels(questions, IGNORE), [], []
    for dtype in ("bfloat16", "float32"):
        edge = make_edge(half=load_edge_half(str(tiny_model), dtype=dtype))
        host = FrozenLLM(load_llm_half(str(tiny_model), dtype=dtype))
        with serve(host) as address, RemoteLLM(address) as remote:
            loss = EmbeddingsExchange(remote).loss(edge(questions), labels)
            assert remote.dtype == dtype
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in named_trainable(edge.adapters).values()])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    for got, expected in zip(*gradients, strict=True):
        assert got.dtype == torch.float32
        assert F.cosine_similarity(got.flatten(), expected.flatten(), dim=0) > 0.98
