"""The cut changes nothing: losses, gradients and scores are those of the whole model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from fednano_flwr.config import Adapter
from fednano_flwr.data.registry import load_questions
from fednano_flwr.edge.adapters import build_adapters, named_trainable
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import (
    Question,
    QuestionEncoder,
    last_positions,
    load_encoder,
    next_token_labels,
)
from fednano_flwr.exchange.client import RemoteLLM
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.edge_half import EdgeHalf, load_edge_half
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half

BATCHES = {
    "pictures and text only": slice(0, 7),
    "text only": slice(1, 8, 2),
    "pictures": slice(0, 8, 2),
    "one question": slice(0, 1),
}


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> QuestionEncoder:
    return load_encoder(str(tiny_model))


@pytest.fixture(scope="module")
def questions(tiny_questions: Path, encoder: QuestionEncoder) -> list[Question]:
    return [encoder.encode(s) for s in load_questions("scienceqa", tiny_questions).train[:8]]


# Relative to the largest value. In float32 the whole model is padded as the host pads, on the
# right; padding on the left rounds differently, so that is compared in float64.
TOLERANCE = 1e-6
SIDE = {"float32": "right", "float64": "left"}


@dataclass
class Setting:
    """The whole model and the two halves of it, in one dtype."""

    dtype: str
    whole: LlavaForConditionalGeneration
    frozen: EdgeHalf
    llm: EmbeddingsExchange
    encoder: QuestionEncoder

    def edge(self, adapted: PeftModel) -> NanoEdge:
        return NanoEdge(self.frozen, adapted.to(getattr(torch, self.dtype)), self.encoder)

    def same(self, got: Tensor, expected: Tensor) -> bool:
        largest = expected.abs().max()
        assert largest > 0 and got.shape == expected.shape
        return bool((got - expected).abs().max() <= TOLERANCE * largest)

    def unsplit_logits(self, adapted: PeftModel | None, questions: list[Question]) -> Tensor:
        """(B, vocabulary) after each prompt, by the whole model on a padded batch with a mask."""
        adapted = None if adapted is None else adapted.to(getattr(torch, self.dtype))
        width = max(len(question.ids) for question in questions)
        right = SIDE[self.dtype] == "right"
        gaps = [width - len(question.ids) for question in questions]
        pads = [(0, gap) if right else (gap, 0) for gap in gaps]
        ids = torch.stack([F.pad(q.ids, p) for q, p in zip(questions, pads, strict=True)])
        real = [F.pad(torch.ones_like(q.ids), p) for q, p in zip(questions, pads, strict=True)]
        mask = torch.stack(real)
        embeds = self.whole.get_input_embeddings()(ids)
        if adapted is not None:
            embeds = adapted.text_adapter(embeds)
        pictured = [question.sample for question in questions if question.sample.image is not None]
        if pictured:
            pixels = self.encoder.pixel_values(pictured).to(self.whole.dtype)
            features = torch.cat(
                list(self.whole.get_image_features(pixel_values=pixels).pooler_output)
            )
            if adapted is not None:
                features = adapted.image_adapter(features)
            embeds = embeds.masked_scatter((ids == 2)[..., None].expand_as(embeds), features)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.whole(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions
        ).logits
        last = [len(q.ids) - 1 if right else width - 1 for q in questions]
        return logits[torch.arange(len(questions)), last]


@pytest.fixture(scope="module", params=["in-process", "grpc"])
def service(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["float32", "float64"])
def setting(
    request: pytest.FixtureRequest, service: str, tiny_model: Path, encoder: QuestionEncoder
) -> Iterator[Setting]:
    dtype = request.param
    whole = LlavaForConditionalGeneration.from_pretrained(tiny_model, dtype=dtype).eval()
    whole.requires_grad_(False)
    host = FrozenLLM(load_llm_half(str(tiny_model), dtype=dtype))
    frozen = load_edge_half(str(tiny_model), dtype=dtype)
    if service == "in-process":
        yield Setting(dtype, whole, frozen, EmbeddingsExchange(host), encoder)
    else:
        with serve(host) as address, RemoteLLM(address) as remote:
            yield Setting(dtype, whole, frozen, EmbeddingsExchange(remote), encoder)


def adapters(sites: str = "image,text", zero: bool = False) -> PeftModel:
    built = build_adapters(48, Adapter(rank=4, alpha=8.0, dropout=0.0, sites=sites), seed=3)
    if not zero:
        generator = torch.Generator().manual_seed(4)
        for name, parameter in named_trainable(built).items():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return built


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("sites", ["image,text", "image", "text"])
def test_split_gradients_equal_unsplit_gradients(
    setting: Setting, questions: list[Question], batch: str, sites: str
) -> None:
    chosen = questions[BATCHES[batch]]
    reference, split = adapters(sites), adapters(sites)
    answers = torch.tensor([question.answer for question in chosen])
    expected = F.cross_entropy(setting.unsplit_logits(reference, chosen), answers)
    loss = setting.llm.loss(setting.edge(split)(chosen), next_token_labels(chosen, IGNORE))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.requires_grad == expected.requires_grad
    if loss.requires_grad:  # an image adapter alone takes no part in a batch of text
        expected.backward()
        loss.backward()
    theirs = named_trainable(reference)
    for name, parameter in named_trainable(split).items():
        expected_grad = theirs[name].grad
        assert (parameter.grad is None) == (expected_grad is None), name
        if expected_grad is not None:
            assert parameter.grad is not None and setting.same(parameter.grad, expected_grad), name


def test_adapters_with_zero_b_change_nothing(setting: Setting, questions: list[Question]) -> None:
    with torch.no_grad():
        inputs = setting.edge(adapters(zero=True))(questions)
        scores = setting.llm.score(inputs, last_positions(questions), torch.arange(64))
        expected = setting.unsplit_logits(None, questions)
    assert (scores - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_both_services_give_the_same_bits(
    llm_half: LLMHalf, edge_half: EdgeHalf, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    inputs = NanoEdge(edge_half, adapters(), encoder)(questions)
    labels = next_token_labels(questions, IGNORE)
    host = FrozenLLM(llm_half)
    with serve(host) as address, RemoteLLM(address) as remote:
        near = host.step(inputs.embeds.detach(), inputs.lengths, labels)
        far = remote.step(inputs.embeds.detach(), inputs.lengths, labels)
    assert near[0] == pytest.approx(far[0], rel=1e-7)
    assert torch.equal(near[1], far[1])


def test_a_question_is_scored_alike_alone_and_among_longer_ones(
    llm_half: LLMHalf, edge_half: EdgeHalf, encoder: QuestionEncoder, questions: list[Question]
) -> None:
    edge = NanoEdge(edge_half, adapters(), encoder)
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
    adapted = adapters()
    edge = NanoEdge(load_edge_half(str(tiny_model), dtype="bfloat16"), adapted, encoder)
    host = FrozenLLM(load_llm_half(str(tiny_model), dtype="bfloat16"))
    with serve(host) as address, RemoteLLM(address) as remote:
        loss = EmbeddingsExchange(remote).loss(
            edge(questions), next_token_labels(questions, IGNORE)
        )
        assert remote.dtype == "bfloat16"
    loss.backward()
    whole = EmbeddingsExchange(FrozenLLM(load_llm_half(str(tiny_model))))
    reference = adapters()
    edge = NanoEdge(load_edge_half(str(tiny_model)), reference, encoder)
    expected = whole.loss(edge(questions), next_token_labels(questions, IGNORE))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    theirs = named_trainable(reference)
    for name, parameter in named_trainable(adapted).items():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        cosine = F.cosine_similarity(parameter.grad.flatten(), theirs[name].grad.flatten(), dim=0)
        assert cosine > 0.98, (name, cosine)
