"""What holds besides the comparison of every family with its whole model (tests/models)."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel

from fednano_flwr.adapters.site import build_adapters, named_trainable
from fednano_flwr.config import Adapter, Dataset
from fednano_flwr.data.load import load_questions
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import (
    Question,
    QuestionEncoder,
    last_positions,
    next_token_labels,
)
from fednano_flwr.exchange.embeddings import EmbeddingInputs, EmbeddingsExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half
from tests.models.unsplit import Unsplit


@pytest.fixture(scope="module")
def questions(tiny_dataset: Dataset, encoder: QuestionEncoder) -> list[Question]:
    return [encoder.encode(s) for s in load_questions(tiny_dataset).train[:8]]


@pytest.fixture(scope="module")
def whole(tiny_model: Path) -> Unsplit:
    return Unsplit(tiny_model, "llava", "float32")


def adapters(sites: str = "image,text", zero: bool = False) -> PeftModel:
    built = build_adapters(48, Adapter(rank=4, alpha=8.0, dropout=0.0, sites=sites), seed=3)
    if not zero:
        generator = torch.Generator().manual_seed(4)
        for name, parameter in named_trainable(built).items():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return built


def nano_edge(half: EdgeHalf, adapted: PeftModel, encoder: QuestionEncoder) -> NanoEdge:
    return NanoEdge(half, half.token_table(), adapted, encoder)


@pytest.mark.parametrize("sites", ["image", "text"])
@pytest.mark.parametrize("batch", [slice(0, 7), slice(1, 8, 2)], ids=["both kinds", "text only"])
def test_one_adapter_alone_gets_the_whole_models_gradient(
    whole: Unsplit,
    edge_half: EdgeHalf,
    llm_half: LLMHalf,
    encoder: QuestionEncoder,
    questions: list[Question],
    sites: str,
    batch: slice,
) -> None:
    chosen, adapted = questions[batch], adapters(sites)
    labels = next_token_labels(chosen, IGNORE)
    expected = F.cross_entropy(
        whole.logits(chosen, encoder, adapted, "right"), labels[labels != IGNORE]
    )
    inputs = nano_edge(edge_half, adapted, encoder)(chosen)
    loss = EmbeddingsExchange(FrozenLLM(llm_half)).loss(inputs, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.requires_grad == expected.requires_grad
    if loss.requires_grad:  # an image adapter alone takes no part in a batch of text
        parameters = list(named_trainable(adapted).values())
        theirs = torch.autograd.grad(expected, parameters)
        for got, wanted in zip(torch.autograd.grad(loss, parameters), theirs, strict=True):
            assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max() > 0


def test_adapters_with_zero_b_change_nothing(
    whole: Unsplit,
    edge_half: EdgeHalf,
    llm_half: LLMHalf,
    encoder: QuestionEncoder,
    questions: list[Question],
) -> None:
    with torch.no_grad():
        inputs = EmbeddingInputs.of(nano_edge(edge_half, adapters(zero=True), encoder)(questions))
        scores = FrozenLLM(llm_half).score(inputs, last_positions(questions), torch.arange(64))
        expected = whole.logits(questions, encoder, None, "right")
    assert (scores - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_both_services_give_the_same_bits(
    llm_half: LLMHalf, edge_half: EdgeHalf, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    inputs = EmbeddingInputs.of(nano_edge(edge_half, adapters(), encoder)(questions)).detach()
    labels, last = next_token_labels(questions, IGNORE), last_positions(questions)
    host = FrozenLLM(llm_half)
    with serve(host) as address, RemoteLLM(address) as remote:
        near, far = host.step(inputs, labels), remote.step(inputs, labels)
        tokens = host.next_tokens(inputs, last), remote.next_tokens(inputs, last)
    assert near[0] == pytest.approx(far[0], rel=1e-7)
    assert torch.equal(*near[1], *far[1])
    assert torch.equal(*tokens)


def test_a_question_is_scored_alike_alone_and_among_longer_ones(
    llm_half: LLMHalf, edge_half: EdgeHalf, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    edge = nano_edge(edge_half, adapters(), encoder)
    llm = EmbeddingsExchange(FrozenLLM(llm_half))
    assert len({len(question.ids) for question in questions}) > 2
    with torch.no_grad():
        together = llm.score(edge(questions), last_positions(questions), torch.arange(64))
        for question, row in zip(questions, together, strict=True):
            alone = llm.score(edge([question]), last_positions([question]), torch.arange(64))
            assert (alone[0] - row).abs().max() <= 1e-6 * row.abs().max()


def test_bfloat16_halves_agree_within_their_dtype(
    tiny_model: Path, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    labels, gradients, losses = next_token_labels(questions, IGNORE), [], []
    for dtype in ("bfloat16", "float32"):
        adapted = adapters()
        edge = nano_edge(load_edge_half(str(tiny_model), dtype=dtype), adapted, encoder)
        host = FrozenLLM(load_llm_half(str(tiny_model), dtype=dtype))
        with serve(host) as address, RemoteLLM(address) as remote:
            loss = EmbeddingsExchange(remote).loss(edge(questions), labels)
            assert remote.dtype == dtype
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in named_trainable(adapted).values()])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    for got, expected in zip(*gradients, strict=True):
        assert got.dtype == torch.float32
        assert F.cosine_similarity(got.flatten(), expected.flatten(), dim=0) > 0.98
