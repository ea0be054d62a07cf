from dataclasses import replace

import pytest
import torch

from fednano_flwr.adapters.site import adapter_state, named_trainable
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.proximal import proximal_term
from fednano_flwr.edge.questions import Question
from fednano_flwr.edge.training import TrainingPlan, TrainingResult, train
from fednano_flwr.exchange.embeddings import EmbeddingsExchange

PLAN = TrainingPlan(
    local_epochs=2, batch_size=5, learning_rate=0.01, weight_decay=0.0, max_grad_norm=1.0
)


def test_value_and_gradient_by_hand() -> None:
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    b = torch.tensor([[5.0]], requires_grad=True)
    term = proximal_term([a, b], [torch.tensor([0.0, 4.0]), torch.tensor([[2.0]])], mu=0.5)
    term.backward()
    # 0.5 / 2 · (1² + (−2)² + 3²), and 0.5 · (1, −2), 0.5 · 3
    assert term.item() == pytest.approx(3.5)
    assert a.grad is not None and a.grad.tolist() == pytest.approx([0.5, -1.0])
    assert b.grad is not None and b.grad.item() == pytest.approx(1.5)


def moved(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question], plan: TrainingPlan
) -> tuple[float, TrainingResult]:
    """How far training takes the adapters from where they were, and what it returns."""
    start = adapter_state(edge.adapters)
    result = train(edge, llm, questions, plan, seed=1, running_fisher=True)
    end = adapter_state(edge.adapters)
    for name, parameter in named_trainable(edge.adapters).items():
        parameter.data.copy_(start[name])
    return sum(float((end[key] - start[key]).square().sum()) for key in start) ** 0.5, result


def test_the_term_holds_training_to_its_start(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    plan = replace(PLAN, local_epochs=6)
    free, _ = moved(edge, llm, questions, plan)
    held, _ = moved(edge, llm, questions, replace(plan, proximal_mu=10.0))
    firmly, _ = moved(edge, llm, questions, replace(plan, proximal_mu=1000.0))
    assert firmly < held < 0.8 * free


def test_loss_and_running_fisher_are_those_of_the_cross_entropy_alone(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    train(edge, llm, questions, PLAN, seed=2)
    near = replace(PLAN, learning_rate=1e-5)  # loss and gradients hardly change on the way
    _, free = moved(edge, llm, questions, near)
    _, held = moved(edge, llm, questions, replace(near, proximal_mu=1e6))
    assert held.loss == pytest.approx(free.loss, rel=1e-3)
    assert free.fisher is not None and held.fisher is not None
    for name, expected in free.fisher.items():
        # one step of 1e-5 alone would put (1e6 · 1e-5)² into it
        assert expected.max() < 10
        assert torch.allclose(held.fisher[name], expected, rtol=0.05, atol=0.01 * expected.max())
