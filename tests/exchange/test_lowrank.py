"""The low-rank exchange: what it sends, and what it survives."""

from __future__ import annotations

import pytest
import torch

from fednano_flwr.adapters.site import named_trainable
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, last_positions, next_token_labels
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.errors import HostRefusedError
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.wire import client, methods
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf
from tests.exchange.conftest import MakeEdge

FEATURE_BYTES = 9 * 48 * 4  # of one picture of the tiny model


def gradients(exchange: Exchange, edge: NanoEdge, questions: list[Question]) -> list[torch.Tensor]:
    edge.adapters.zero_grad(set_to_none=True)
    exchange.loss(edge(questions), next_token_labels(questions, IGNORE)).backward()
    found = [p.grad for p in named_trainable(edge.adapters).values()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def close(got: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    pairs = zip(got, expected, strict=True)
    return all((g - e).abs().max() <= 1e-6 * e.abs().max() for g, e in pairs)


def test_features_are_sent_once_and_then_only_ranks(
    remote: RemoteLLM, edge: NanoEdge, questions: list[Question], host: FrozenLLM
) -> None:
    exchange = LowRankExchange(remote)
    expected = gradients(EmbeddingsExchange(host), edge, questions)
    assert close(gradients(exchange, edge, questions), expected)
    first = remote.traffic.bytes_up
    assert close(gradients(exchange, edge, questions), expected)
    later = remote.traffic.bytes_up - first
    assert first - later > 4 * FEATURE_BYTES  # of four pictures
    assert later < first / 3
    assert host.features.bytes_in_memory == 4 * FEATURE_BYTES


@pytest.mark.parametrize(
    ("largest", "at_once", "calls"),
    [
        (2**31 - 1, 2**24, 1),
        (2 * FEATURE_BYTES + 400, 2**24, 2),
        (2 * FEATURE_BYTES, 2**24, 4),
        (2**31 - 1, FEATURE_BYTES, 4),  # less than one with its frame
    ],
)
def test_as_many_pictures_are_sent_in_a_call_as_a_message_holds(
    largest: int,
    at_once: int,
    calls: int,
    host: FrozenLLM,
    edge: NanoEdge,
    questions: list[Question],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(methods, "largest_message", lambda info: largest)
    monkeypatch.setattr(client, "FEATURES_AT_ONCE", at_once)
    features = edge(questions).features
    assert len(features) == 4
    with serve(host) as address, RemoteLLM(address) as remote:
        remote.describe()
        before = remote.traffic.calls, remote.traffic.bytes_up
        remote.keep_features(features)
        assert remote.traffic.calls - before[0] == calls
        sent = remote.traffic.bytes_up - before[1]
    assert 4 * FEATURE_BYTES < sent < 4 * FEATURE_BYTES + 4 * 64
    assert host.features.bytes_in_memory == 4 * FEATURE_BYTES


def test_a_store_emptied_between_steps_costs_a_resend_and_one_too_small_is_named(
    remote: RemoteLLM, edge: NanoEdge, questions: list[Question], host: FrozenLLM
) -> None:
    exchange = LowRankExchange(remote)
    expected = gradients(exchange, edge, questions)
    host.features.close()
    assert close(gradients(exchange, edge, questions), expected)
    host.features.close()
    host.features = FeatureStore(2 * FEATURE_BYTES)
    with pytest.raises(HostRefusedError, match=r"llm\.feature-memory-mb"):
        exchange.loss(edge(questions), next_token_labels(questions, IGNORE))


def test_a_batch_whose_features_lie_on_disk_has_the_same_gradients(
    edge: NanoEdge, questions: list[Question], host: FrozenLLM
) -> None:
    store = host.features = FeatureStore(2 * FEATURE_BYTES, 100 * FEATURE_BYTES)
    exchange = LowRankExchange(host)
    expected = gradients(EmbeddingsExchange(host), edge, questions)
    for _ in range(2):
        assert close(gradients(exchange, edge, questions), expected)
    assert store.bytes_on_disk > 0
    store.close()


def test_another_node_does_not_find_what_a_node_has_sent(
    host: FrozenLLM, edge: NanoEdge, questions: list[Question]
) -> None:
    batch, labels = edge(questions), next_token_labels(questions, IGNORE)
    with serve(host) as address:
        with RemoteLLM(address, Caller(run=1, node=7)) as mine:
            LowRankExchange(mine).loss(batch, labels)
        for caller in (Caller(run=1, node=8), Caller(run=2, node=7)):
            with RemoteLLM(address, caller) as other:
                asked = []
                other.keep_features = asked.append  # type: ignore[method-assign, assignment]
                with pytest.raises(HostRefusedError):
                    LowRankExchange(other).loss(batch, labels)
                assert asked and all(len(features) == 4 for features in asked)


def test_a_restarted_host_is_sent_the_features_again(
    llm_half: LLMHalf, edge: NanoEdge, questions: list[Question]
) -> None:
    with serve(FrozenLLM(llm_half)) as address:
        remote = RemoteLLM(address, Caller(run=1, node=7), retry_seconds=20)
        exchange = LowRankExchange(remote)
        expected = gradients(exchange, edge, questions)
    port = int(address.rpartition(":")[2])
    with serve(FrozenLLM(llm_half), port=port):
        assert close(gradients(exchange, edge, questions), expected)
    remote.close()


def test_scores_and_losses_are_those_of_the_plain_exchange(
    remote: RemoteLLM, edge: NanoEdge, questions: list[Question], host: FrozenLLM
) -> None:
    batch, last = edge(questions), last_positions(questions)
    plain, low = EmbeddingsExchange(host), LowRankExchange(remote)
    expected = plain.score(batch, last, torch.arange(64))
    assert (low.score(batch, last, torch.arange(64)) - expected).abs().max() < 1e-5
    tokens = torch.arange(len(last))
    losses = low.token_losses(batch, last, tokens)
    assert (losses - plain.token_losses(batch, last, tokens)).abs().max() < 1e-5


def test_a_batch_without_a_site_of_an_adapter_has_a_loss_and_nothing_to_train(
    host: FrozenLLM, make_edge: MakeEdge, questions: list[Question]
) -> None:
    alone = make_edge("image")
    text = [question for question in questions if not question.sample.pictures]
    labels = next_token_labels(text, IGNORE)
    loss = LowRankExchange(host).loss(alone(text), labels)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(EmbeddingsExchange(host).loss(alone(text), labels).item())


def test_several_adapters_at_once_have_the_plain_exchanges_gradients(
    host: FrozenLLM, edge: NanoEdge, questions: list[Question]
) -> None:
    adapters = edge.adapters
    adapters.add_adapter("second", adapters.peft_config["default"])
    adapters.base_model.set_adapter(["default", "second"])
    for name, parameter in adapters.named_parameters():
        if "second" in name:
            parameter.requires_grad_()
            torch.nn.init.normal_(parameter, std=0.2)
    found = []
    for exchange in (EmbeddingsExchange(host), LowRankExchange(host)):
        adapters.zero_grad(set_to_none=True)
        exchange.loss(edge(questions), next_token_labels(questions, IGNORE)).backward()
        found.append([p.grad.clone() for p in adapters.parameters() if p.grad is not None])
    assert len(found[0]) == 8 and close(*found)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_ranks_sent_with_fewer_bits_give_nearly_the_same_gradients(
    host: FrozenLLM, edge: NanoEdge, questions: list[Question], dtype: str
) -> None:
    expected = gradients(LowRankExchange(host), edge, questions)
    host.features.close()
    with serve(host) as address, RemoteLLM(address, dtype=dtype) as remote:
        got = gradients(LowRankExchange(remote), edge, questions)
    for one, other in zip(got, expected, strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98
        assert not torch.equal(one, other)
