"""Factors that are constant are named, not sent: the same bits for a fraction of the bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.site import adapter_state, named_trainable, train_only
from fednano_flwr.config import RunConfig
from fednano_flwr.edge.generation import generate
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, last_positions, next_token_labels
from fednano_flwr.exchange.at_host import FACTOR, AtHost
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.lowrank import LowRankExchange, LowRankInputs
from fednano_flwr.exchange.protocol import IGNORE
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.exchange.wire.methods import METHODS
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.rounds.service import named_factors
from fednano_flwr.runs.folder import RunFolder
from tests.exchange.conftest import MakeEdge
from tests.local_grid import LocalGrid
from tests.models.test_llm_lora import WithPart
from tests.outcome import adapters, assert_same

FACTORS = pytest.mark.parametrize("factor", ["A", "B"])
Config = Callable[..., dict[str, Any]]


def step(exchange: Exchange, edge: NanoEdge, questions: list[Question]) -> list[torch.Tensor]:
    edge.adapters.zero_grad(set_to_none=True)
    loss = exchange.loss(edge(questions), next_token_labels(questions, IGNORE))
    loss.backward()
    grads = [p.grad for p in named_trainable(edge.adapters).values()]
    return [loss.detach(), *(g.clone() for g in grads if g is not None)]


@FACTORS
@pytest.mark.parametrize("labels_at", ["server", "client"])
@pytest.mark.parametrize("known", [True, False], ids=["from the ServerApp", "from the client"])
def test_a_step_that_names_a_factor_gives_the_same_bits(
    host: FrozenLLM,
    make_edge: MakeEdge,
    questions: list[Question],
    factor: str,
    labels_at: str,
    known: bool,
) -> None:
    edge = make_edge()
    train_only(edge.adapters, factor)
    expected = step(LowRankExchange(host, labels_at), edge, questions)
    assert len(expected) == 3
    edge.names_factors = True
    batch = edge(questions)
    assert (not batch.z) == (factor == "B") and (not batch.b) == (factor == "A")
    part = AtHost(factors=named_factors(adapter_state(edge.adapters)) if known else {})
    phase: Any = WithPart(host, part)
    found = step(LowRankExchange(phase, labels_at), edge, questions)
    again = step(LowRankExchange(phase, labels_at), edge, questions)
    kept = host.features.count(b"")
    assert kept - len({q.sample.uid for q in questions if q.sample.images}) == (0 if known else 2)
    for one, other, third in zip(found, expected, again, strict=True):
        assert torch.equal(one, other) and torch.equal(third, other)


def test_scoring_sends_no_factor(
    host: FrozenLLM, make_edge: MakeEdge, questions: list[Question]
) -> None:
    edge = make_edge()
    llm, last = LowRankExchange(host), last_positions(questions)
    with torch.no_grad():
        expected = llm.score(edge(questions), last, torch.arange(9))
        edge.names_factors = True
        batch = edge(questions)
        assert not batch.z and not batch.b and set(batch.named) == {"image", "text"}
        assert torch.equal(llm.score(batch, last, torch.arange(9)), expected)


def test_an_answer_is_generated_without_sending_a_factor(
    host: FrozenLLM, make_edge: MakeEdge, questions: list[Question]
) -> None:
    edge = make_edge()
    llm = LowRankExchange(host)
    with torch.no_grad():
        expected = generate(edge, llm, questions[:3], 5)
        edge.names_factors = True
        found = generate(edge, llm, questions[:3], 5)
        token = edge.next_tokens(questions[:1], [(5,)])
    assert found == expected and not token.z and LowRankInputs.token_rows(token) is None


@FACTORS
def test_what_is_named_is_not_rounded_to_the_dtype_of_the_wire(
    host: FrozenLLM, make_edge: MakeEdge, questions: list[Question], factor: str
) -> None:
    edge = make_edge()
    train_only(edge.adapters, factor)
    expected = step(LowRankExchange(host), edge, questions)
    apart = []
    for names in (False, True):
        edge.names_factors = names
        with serve(host) as address, RemoteLLM(address, dtype="bfloat16") as remote:
            found = step(LowRankExchange(remote), edge, questions)
        pairs = zip(found[1:], expected[1:], strict=True)
        apart.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))
    assert 0 < apart[1] < 0.02 and apart[1] < 2 * apart[0]


def test_dropout_makes_z_of_a_constant_a_anew(make_edge: MakeEdge) -> None:
    edge = make_edge()
    train_only(edge.adapters, "B")
    edge.names_factors = True
    layer: Any = edge.adapters.base_model.model.text_adapter
    layer.lora_dropout["default"] = torch.nn.Dropout(0.5)
    edge.adapters.train()
    assert edge._named("text") is None
    edge.adapters.eval()
    named = edge._named("text")
    assert named is not None and named.a is not None and named.b is None


def test_a_factor_that_changes_has_another_name(make_edge: MakeEdge) -> None:
    edge = make_edge()
    edge.names_factors = True
    with torch.no_grad():
        first, same = edge._named("text"), edge._named("text")
        assert first is not None and first == same and first.a is not None
        edge.adapters.base_model.model.text_adapter.lora_A["default"].weight += 1  # type: ignore[operator, union-attr, index]
        then = edge._named("text")
    assert then is not None and then.a is not None
    assert then.a.key != first.a.key and then.b == first.b


def run(flat: dict[str, Any], names: bool) -> RunFolder:
    class Edge(NanoEdge):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments[:5], names)

    with mock.patch("fednano_flwr.edge.client.NanoEdge", Edge):
        return server_app.federate(LocalGrid(client_app.app, flat, 3), 1, RunConfig.parse(flat))


@pytest.mark.parametrize(
    ("strategy", "labels_at", "keys"),
    [
        ("rolora", "server", {"local_epochs": 2}),
        ("ffa-lora", "client", {}),
        ("fedavg-exact", "server", {"adapter__ranks": "2,4,3"}),
        ("accumulate", "server", {}),
    ],
)
def test_a_run_is_the_same_to_the_bit_and_sends_less(
    run_config: Config, strategy: str, labels_at: str, keys: dict[str, Any]
) -> None:
    flat = run_config(strategy__name=strategy, exchange__labels_at=labels_at, **keys)
    plain = run({**flat, "run.name": "plain"}, names=False)
    named = run(flat, names=True)
    assert_same(adapters(named.path), adapters(plain.path))
    for record, other in zip(named.rounds, plain.rounds, strict=True):
        assert record["test_loss_per_client"] == other["test_loss_per_client"]
        assert not record["failures"]["train"] and not record["failures"]["evaluate"]
        assert record["step_bytes_up"] < other["step_bytes_up"]


def test_what_the_host_forgets_is_sent_again_to_the_same_bits(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of lower ranks, whose factors the ServerApp does not know."""
    flat = run_config(strategy__name="fedavg-exact", adapter__ranks="2,4,3")
    plain = run({**flat, "run.name": "plain"}, names=False)
    real, calls = FeatureStore.get, []

    def forgetful(store: FeatureStore, owner: bytes, key: bytes) -> Any:
        calls.append(key)
        return None if len(calls) % 41 == 0 else real(store, owner, key)

    monkeypatch.setattr(FeatureStore, "get", forgetful)
    found = run(flat, names=True)
    assert_same(adapters(found.path), adapters(plain.path))
    assert any(key.startswith(FACTOR) for key in calls)


def test_a_client_never_names_what_it_keeps_to_itself(run_config: Config) -> None:
    seen: list[bool] = []
    real = NanoEdge.adapt

    def look(edge: NanoEdge, batch: Any) -> Any:
        made = real(edge, batch)
        seen.append(bool(made.named))
        return made

    for strategy in ("locft", "feddpa-f"):
        with mock.patch.object(NanoEdge, "adapt", look):
            run(run_config(run__name=strategy, strategy__name=strategy), names=True)
    assert seen and not any(seen)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.ClearField("a"), "z has to be sent, or its factor named"),
        (lambda f: setattr(f, "a", b"no factor"), "no factor's"),
        (lambda f: setattr(f, "scale", float("nan")), "scale nan"),
        (lambda f: setattr(f, "b_key", FACTOR + b"x"), "b has to be sent"),
    ],
)
def test_what_cannot_be_named_so_is_refused(
    host: FrozenLLM,
    make_edge: MakeEdge,
    questions: list[Question],
    spoil: Callable[[Any], None],
    message: str,
) -> None:
    edge = make_edge()
    train_only(edge.adapters, "B")
    edge.names_factors = True
    inputs = LowRankInputs.of(edge(questions)).detach()
    call = pb.Call()
    call.step.header.protocol = RemoteLLM("127.0.0.1:1").caller.header().protocol
    METHODS["step"].write(call.step, "float32", inputs, next_token_labels(questions, IGNORE))
    spoil(call.step.inputs.low_rank.factors[0])
    answer = Dispatcher(host).answer(call.SerializeToString(), b"1/2")
    assert message in answer.refused


def test_factors_of_two_ranks_are_refused(
    host: FrozenLLM, make_edge: MakeEdge, questions: list[Question]
) -> None:
    edge = make_edge()
    edge.names_factors = True
    with torch.no_grad():
        batch = edge(questions)
    named = batch.named["text"]
    assert named.a is not None and named.b is not None
    part = AtHost(factors={named.a.key: named.a.rows, named.b.key: named.b.rows[:2]})
    inputs = LowRankInputs.of(batch).through(part)
    for feature in (*batch.features, *batch.named["image"][:2]):
        assert feature is not None
        host.keep_features([feature])
    with pytest.raises(ValueError, match=r"text: factors of ranks \[2, 4\] do not fit"):
        host.score(inputs, torch.tensor([1]), torch.arange(3))
