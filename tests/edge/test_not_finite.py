"""What a language model that overflows answers is an error, and never a score or a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.ask.asker import Asker
from fednano_flwr.ask.opening import LocalService
from fednano_flwr.edge.generation import generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.edge.scoring import score_questions
from fednano_flwr.edge.training import TrainingPlan, fisher_diagonal, train
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import Layout
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.jobs import TokenLossesJob
from fednano_flwr.models.edge_half import EdgeHalf
from fednano_flwr.models.llm_half import LLMHalf

PLAN = TrainingPlan(
    local_epochs=1, batch_size=4, learning_rate=0.01, weight_decay=0.0, max_grad_norm=1.0
)
ASKED = torch.tensor([3])


@pytest.fixture(params=[float("nan"), float("inf")])
def overflowing(
    request: pytest.FixtureRequest, llm_half: LLMHalf, monkeypatch: pytest.MonkeyPatch
) -> FrozenLLM:
    """A host of which one logit after the last row of each pass is `request.param`."""

    def overflowing(healthy: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def logits(*arguments: Any) -> Tensor:
            found = healthy(*arguments)
            beyond = torch.zeros_like(found)
            beyond[-1] = request.param
            return found + beyond

        return logits

    for name in ("logits", "next_logits"):
        monkeypatch.setattr(llm_half, name, overflowing(getattr(llm_half, name)))
    return FrozenLLM(llm_half)


@pytest.fixture(params=["embeddings server", "lowrank client"])
def llm(request: pytest.FixtureRequest, overflowing: FrozenLLM) -> Iterator[Exchange]:
    kind, labels_at = request.param.split()
    with serve(overflowing) as address, RemoteLLM(address) as remote:
        yield EXCHANGES[kind](remote, labels_at)


@pytest.fixture
def asked(questions: list[Question]) -> list[Question]:
    return questions[:4]


WORK: dict[str, Callable[[NanoEdge, Any, list[Question]], object]] = {
    "train": lambda edge, llm, asked: train(edge, llm, asked, PLAN, seed=0),
    "fisher": lambda edge, llm, asked: fisher_diagonal(edge, llm, asked, 4),
    "fisher at drawn answers": lambda edge, llm, asked: fisher_diagonal(edge, llm, asked, 4, 1),
    "score": lambda edge, llm, asked: score_questions(edge, llm, asked, 4),
}


@pytest.mark.parametrize("work", WORK)
def test_logits_that_are_not_finite_are_an_error_that_names_the_question_and_the_dtype(
    work: str, edge: NanoEdge, llm: Exchange, asked: list[Question]
) -> None:
    with pytest.raises(FloatingPointError, match=r"llm\.dtype") as caught:
        WORK[work](edge, llm, asked)
    named = str(caught.value).partition("at question ")[2].partition(":")[0].split(", ")
    ids = [question.sample.uid for question in asked]
    assert named == ids[-1:] if "score" in work or "drawn" in work else set(named) == set(ids)


def test_a_generated_token_needs_finite_logits(
    edge: NanoEdge, llm: Exchange, asked: list[Question]
) -> None:
    with pytest.raises(HostRefusedError, match=r"sequence 4 of 4 .*llm\.dtype"):
        generate(edge, llm, asked, 2)


@pytest.mark.parametrize("options", [True, False])
def test_an_asked_question_is_not_answered_by_logits_that_are_not_finite(
    edge: NanoEdge, overflowing: FrozenLLM, asked: list[Question], options: bool
) -> None:
    sample = asked[0].sample
    if not options:
        sample = replace(sample, choices=(), answer=None, free_answer="w20")
    for kind in EXCHANGES:
        asker = Asker(edge, edge, EXCHANGES[kind](LocalService(overflowing), "server"), 4)  # type: ignore[arg-type]
        with pytest.raises(HostRefusedError, match=r"llm\.dtype"):
            asker.answer_sample(sample)


def test_the_next_token_of_a_kept_sequence_needs_finite_logits(
    edge: NanoEdge, llm_half: LLMHalf, asked: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = EXCHANGES["lowrank"](FrozenLLM(llm_half), "server")
    begun = llm.prefill(edge(asked[:1]), 2)
    monkeypatch.setattr(llm_half, "next_logits", lambda *_: torch.full((1, 64), float("nan")))
    with pytest.raises(ValueError, match=r"llm\.dtype"):
        token = edge.next_tokens(asked[:1], [tuple(begun.tokens.tolist())])
        llm.decode(begun.cache, torch.tensor([0]), token)


def test_in_a_shared_pass_only_what_overflows_has_no_loss(
    overflowing: FrozenLLM,
) -> None:
    inputs = EmbeddingInputs(
        torch.randn(4, 48, generator=torch.Generator().manual_seed(0)), Layout((4,))
    )
    good, bad = (TokenLossesJob(inputs, ASKED, ASKED, owner) for owner in (b"a", b"b"))
    overflowing.serve([*good.samples(), *bad.samples()])
    assert good.future.result().isfinite().all()
    assert not bad.future.result().isfinite().any()


@pytest.mark.parametrize("kind", EXCHANGES)
def test_a_gradient_that_is_not_finite_takes_no_step(
    kind: str, edge: NanoEdge, llm_half: LLMHalf, asked: list[Question]
) -> None:
    class Steep(FrozenLLM):
        def step(self, inputs, labels, owner=b""):  # type: ignore[no-untyped-def]
            loss, gradient = super().step(inputs, labels, owner)
            gradient[-1][0] = float("inf")
            return loss, gradient

    before = {name: value.clone() for name, value in edge.adapters.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"gradient of .*llm\.dtype"):
        train(edge, EXCHANGES[kind](Steep(llm_half), "server"), asked, PLAN, seed=0)
    assert all(torch.equal(value, before[n]) for n, value in edge.adapters.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_features_that_are_not_finite_are_not_kept_and_name_their_question_and_the_dtype(
    value: float, edge: NanoEdge, asked: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EdgeHalf, "features", lambda *_: torch.full((9, 48), value))
    pictured = next(question for question in asked if question.sample.pictures)
    with pytest.raises(FloatingPointError, match=rf"{pictured.sample.uid}: .*edge\.dtype"):
        edge([pictured])
    assert not edge.cache
