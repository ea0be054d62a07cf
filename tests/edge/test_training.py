from dataclasses import replace
from typing import Any

import pytest
import torch

from fednano_flwr.adapters.site import adapter_state, build_adapters, named_trainable
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import Adapter, ConfigError, RunConfig
from fednano_flwr.edge.feature_cache import FeatureCache
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, next_token_labels
from fednano_flwr.edge.scoring import score_questions
from fednano_flwr.edge.training import (
    TrainingPlan,
    TrainingResult,
    fisher_diagonal,
    learning_rate,
    proximal_term,
    train,
    with_drawn_answers,
)
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.edge_half import EdgeHalf
from fednano_flwr.models.llm_half import LLMHalf

PLAN = TrainingPlan(
    local_epochs=2, batch_size=5, learning_rate=0.01, weight_decay=0.0, max_grad_norm=1.0
)


def test_training_lowers_the_loss(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    first = train(edge, llm, questions, PLAN, seed=1)
    for seed in range(2, 6):
        last = train(edge, llm, questions, PLAN, seed=seed)
    assert last.loss < 0.8 * first.loss


def test_a_seed_fixes_local_training(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    states = []
    for seed in (1, 1, 2):
        adapters = build_adapters(48, Adapter(4, 8.0, 0.1, "image,text"), 0)
        fresh = NanoEdge(edge.frozen, edge.tokens, adapters, edge.encoder)
        train(fresh, llm, questions, PLAN, seed=seed)
        states.append(adapter_state(fresh.adapters))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_fisher_equals_an_independent_computation_batch_by_batch(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question], llm_half: LLMHalf
) -> None:
    train(edge, llm, questions, PLAN, seed=1)
    fisher = fisher_diagonal(edge, llm, questions, batch_size=5)
    parameters = named_trainable(edge.adapters)
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for start in (0, 5, 10):  # the last batch has two questions
        batch = questions[start : start + 5]
        inputs = edge(batch)
        losses = []
        for embeds, question in zip(
            inputs.embedded().split(inputs.layout.lengths), batch, strict=True
        ):
            last = torch.tensor([len(embeds) - 1])
            logits = llm_half.logits(embeds[None], last, torch.ones(1, len(embeds)).bool())[0]
            losses.append(torch.logsumexp(logits, 0) - logits[question.answer[0]])
        gradients = torch.autograd.grad(sum(losses) / len(losses), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            squares[name] += gradient.square() / 3
    for name, expected in squares.items():
        assert expected.max() > 0
        assert torch.allclose(fisher[name], expected, rtol=1e-3, atol=1e-6 * expected.max()), name


def test_running_fisher_is_the_mean_of_the_squares_met_in_training(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    still = TrainingPlan(1, 4, 1e-30, 0.0, 1e-3)  # clipping must not shrink what is kept
    train(edge, llm, questions, PLAN, seed=1)
    drawn = torch.Generator().manual_seed(derive_seed(Purpose.ORDER, 7))
    shuffled = torch.randperm(12, generator=drawn).tolist()
    in_order = [questions[i] for i in shuffled]
    running = train(edge, llm, questions, still, seed=7, running_fisher=True).fisher
    passed = fisher_diagonal(edge, llm, in_order, batch_size=4)
    assert running is not None
    for name, expected in passed.items():
        assert torch.allclose(running[name], expected, rtol=1e-4, atol=1e-6 * expected.max()), name


def test_running_fisher_of_the_last_epoch_leaves_out_the_others(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    still = TrainingPlan(3, 4, 1e-30, 0.0, 1e-3)
    train(edge, llm, questions, PLAN, seed=1)
    drawn = torch.Generator().manual_seed(derive_seed(Purpose.ORDER, 7))
    *_, order = [torch.randperm(12, generator=drawn).tolist() for _ in range(3)]
    passed = fisher_diagonal(edge, llm, [questions[i] for i in order], batch_size=4)
    last = train(edge, llm, questions, still, 7, True, last_epoch_only=True).fisher
    whole = train(edge, llm, questions, still, 7, True).fisher
    assert last is not None and whole is not None
    for name, expected in passed.items():
        assert torch.allclose(last[name], expected, rtol=1e-4, atol=1e-6 * expected.max()), name
        assert not torch.allclose(last[name], whole[name], rtol=1e-2), name


def test_while_b_is_zero_the_fisher_of_a_is_zero(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    fisher = fisher_diagonal(edge, llm, questions, batch_size=5)
    for name, value in fisher.items():
        assert (value.max() == 0) == ("lora_A" in name), name


def test_an_image_adapter_alone_survives_batches_of_text(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    adapters = build_adapters(48, Adapter(4, 8.0, 0.0, "image"), seed=0)
    text = [question for question in questions if not question.sample.images]
    alone = NanoEdge(edge.frozen, edge.tokens, adapters, edge.encoder)
    fisher = train(alone, llm, text, PLAN, 1, running_fisher=True).fisher
    assert fisher is not None and all(value.max() == 0 for value in fisher.values())


def test_scoring_compares_a_questions_own_letters_only(
    edge: NanoEdge, questions: list[Question], llm_half: LLMHalf
) -> None:
    class Loud(FrozenLLM):
        """Prefers the letter D, then the right one."""

        def score(self, inputs, positions, candidates):  # type: ignore[no-untyped-def]
            logits = super().score(inputs, positions, candidates) * 0
            for row, question in zip(logits, batch, strict=True):
                row[candidates == question.answer[0]] = 1.0
                row[candidates == letters[3]] = 2.0
            return logits

    letters = next(q.options for q in questions if len(q.options) == 4)
    batch = questions
    scores = score_questions(edge, EmbeddingsExchange(Loud(llm_half)), questions, batch_size=12)
    expected = [len(q.options) < 4 or q.answer[0] == letters[3] for q in questions]
    assert [score.value for score in scores] == expected and 0 < sum(expected) < 12


def test_pictures_are_encoded_once_and_a_full_cache_keeps_no_more(
    edge: NanoEdge, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    original = EdgeHalf.features
    monkeypatch.setattr(
        EdgeHalf, "features", lambda self, *one: seen.append(one) or original(self, *one)
    )
    pictured = [question for question in questions if question.sample.images]
    first = edge(pictured).embedded()
    second = edge(pictured).embedded()
    assert len(seen) == len(pictured) and torch.equal(first, second)
    one = 9 * 48 * 4
    edge.cache = FeatureCache(max_bytes=2 * one + 1)
    edge(pictured)
    again = edge(pictured).embedded()
    assert len(edge.cache) == 2 and len(seen) == 3 * len(pictured) - 2
    assert torch.equal(again, first)


def test_labels_follow_each_prompts_last_token(questions: list[Question]) -> None:
    labels = next_token_labels(questions[:2], IGNORE)
    first = len(questions[0].ids)
    assert labels[first - 1] == questions[0].answer[0] and labels[-1] == questions[1].answer[0]
    assert int((labels != IGNORE).sum()) == 2


def test_labels_of_earlier_answers_stand_one_before_their_tokens(questions: list[Question]) -> None:
    ids, learned = torch.tensor([7, 8, 9, 4, 5]), torch.tensor([0, 1, 1, 0, 0]).bool()
    dialogue = replace(questions[0], ids=ids, learned=learned, answer=(6, 3))
    none = IGNORE
    assert next_token_labels([dialogue], none).tolist() == [8, 9, none, none, 6, 3]


def test_drawn_answers_follow_the_models_own_distribution(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    question = max(questions, key=lambda one: len(one.options))
    with torch.no_grad():
        batch = edge([question])
        logits = llm.score(batch, torch.tensor([len(question.ids) - 1]), _ids(question.options))
    expected = logits[0].softmax(0)
    assert expected.max() < 0.9  # or there would be little to see
    generator = torch.Generator().manual_seed(0)
    batches = [question] * 50
    frozen = edge.embed(batches)
    drawn = [
        one.answer[0]
        for _ in range(8)
        for one in with_drawn_answers(edge, llm, batches, frozen, generator)
    ]
    for token, share in zip(question.options, expected.tolist(), strict=True):
        error = (share * (1 - share) / len(drawn)) ** 0.5
        assert abs(drawn.count(token) / len(drawn) - share) < 4 * error


def _ids(options: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(options)


def test_the_fisher_at_drawn_answers_is_another_one_and_its_seed_fixes_it(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    train(edge, llm, questions, PLAN, seed=1)
    true, first, again, other = (
        fisher_diagonal(edge, llm, questions, 4, drawn_with) for drawn_with in (None, 1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], true[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_answers_are_not_drawn_for_free_answers(
    edge: NanoEdge, llm: EmbeddingsExchange, questions: list[Question]
) -> None:
    free = [replace(questions[0], options=())]
    with pytest.raises(ValueError, match="fisher-estimate"):
        fisher_diagonal(edge, llm, free, 1, drawn_with=0)


def test_the_proximal_term_and_its_gradient_by_hand() -> None:
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


def rates(defaults: dict[str, Any], rounds: int = 5, **keys: Any) -> list[float]:
    """Of each round, at a full rate of 0.8."""
    changed = {key.replace("_", "-"): value for key, value in keys.items()}
    base = {**defaults, "learning-rate": 0.8, "num-server-rounds": rounds}
    config = RunConfig.parse({**base, **changed})
    return [learning_rate(config, k) for k in range(1, rounds + 1)]


def test_by_default_every_round_has_the_full_rate(defaults: dict[str, Any]) -> None:
    assert rates(defaults) == [0.8] * 5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # shares 1, 0.8, 0.6, 0.4, 0.2 of it
        ("linear", [0.8, 0.64, 0.48, 0.32, 0.16]),
        # 0.2 + 0.8 (1 + cos) / 2, cos = 1, √½, 0, −√½, −1
        ("cosine", [0.8, 0.70627417, 0.48, 0.25372583, 0.16]),
    ],
)
def test_the_first_round_has_the_full_rate_and_the_last_its_share_by_hand(
    defaults: dict[str, Any], schedule: str, expected: list[float]
) -> None:
    got = rates(defaults, learning_rate_schedule=schedule, learning_rate_end=0.2)
    assert got == pytest.approx(expected)


def test_warm_up_rises_in_equal_steps_to_the_full_rate_by_hand(defaults: dict[str, Any]) -> None:
    keys = {"learning_rate_schedule": "linear", "learning_rate_end": 0.5}
    got = rates(defaults, rounds=6, warm_up_rounds=3, **keys)
    assert got == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.6, 0.4])
    assert rates(defaults, rounds=3, warm_up_rounds=1) == pytest.approx([0.4, 0.8, 0.8])


def test_a_run_of_one_round_has_the_full_rate(defaults: dict[str, Any]) -> None:
    assert rates(defaults, rounds=1, learning_rate_schedule="cosine") == [0.8]


def test_a_warm_up_without_end_is_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"warm-up-rounds = 5.*num-server-rounds \(5\)"):
        rates(defaults, warm_up_rounds=5)
