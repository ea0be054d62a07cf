"""Sessions at the host: numbered steps, each taken once, whatever is lost, repeated or mixed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.config import Adapter
from fednano_flwr.exchange.at_host import AtHost, HostLora, LoraPlan, SessionResult, Turn
from fednano_flwr.exchange.errors import RefusalError, SessionGoneError
from fednano_flwr.exchange.exchange import step_in_two
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm import sessions as module
from fednano_flwr.llm.finished import FinishedSessions
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.llm.sessions import MB, Sessions, session_bytes
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.layers import decoder_layers
from fednano_flwr.models.llm_half import load_llm_half
from fednano_flwr.models.lora import fresh_lora
from tests.batches import answered_at_the_end as batch

ADAPTER = Adapter(4, 8.0, 0.0, "llm", llm_rank=2)
STEPS = 5
BOTH = pytest.mark.parametrize("labels_at", ["server", "client"])
Make = Callable[..., FrozenLLM]


@pytest.fixture(scope="module")
def start(tiny_model: Path) -> dict[str, Tensor]:
    return fresh_lora(ModelCheckpoint(str(tiny_model)), ADAPTER, seed=1)


@pytest.fixture(scope="module")
def part(start: dict[str, Tensor]) -> AtHost:
    return AtHost(lora=HostLora(start, LoraPlan(0.05, 0.1)))


@pytest.fixture
def make(tiny_model: Path) -> Make:
    def made(limit: int = 4, memory: int = 2**30, **options: Any) -> FrozenLLM:
        half = load_llm_half(str(tiny_model), lora=ADAPTER, **options)
        assert half.lora is not None
        return FrozenLLM(half, sessions=Sessions(half.lora, limit, memory))

    return made


def turn(session: int, number: int, factor: float = 0.5, **kind: bool) -> Turn:
    return Turn(session, number, factor, **kind)


def take(host: Any, part: AtHost, at: Turn, labels_at: str, owner: bytes = b"") -> Any:
    """A step of a session; another owner's batches are others."""
    inputs, labels = batch(at.number + 10 * len(owner))
    inputs = inputs.through(part).with_(turn=at)
    if labels_at == "server":
        return host.step(inputs, labels, owner)
    service = SimpleNamespace(
        forward=lambda *a: host.forward(*a, owner), backward=lambda *a: host.backward(*a, owner)
    )
    return step_in_two(service, inputs, labels)  # type: ignore[arg-type]


def whole_session(host: Any, part: AtHost, labels_at: str = "server", owner: bytes = b"") -> Any:
    session = host.begin(part, owner)
    losses = [
        take(host, part, turn(session, number), labels_at, owner)[0]
        for number in range(1, STEPS + 1)
    ]
    return losses, host.end(turn(session, STEPS + 1), owner)


def same(one: SessionResult, other: SessionResult) -> bool:
    return one.theta.keys() == other.theta.keys() and all(
        torch.equal(value, other.theta[name]) for name, value in one.theta.items()
    )


@BOTH
def test_a_session_changes_its_own_lora_and_nothing_else(
    make: Make, part: AtHost, start: dict[str, Tensor], labels_at: str
) -> None:
    host = make()
    inputs, _ = batch(99)
    score = host.score(inputs.through(part), torch.tensor([3]), torch.arange(9))
    _, result = whole_session(host, part, labels_at)
    assert all(not torch.equal(result.theta[name], value) for name, value in start.items())
    assert torch.equal(host.score(inputs.through(part), torch.tensor([3]), torch.arange(9)), score)
    assert len(host.sessions or ()) == 0


@BOTH
def test_a_step_that_is_repeated_changes_nothing_twice(
    make: Make, part: AtHost, labels_at: str
) -> None:
    _, expected = whole_session(make(), part, labels_at)
    host = make()
    session = host.begin(part)
    for number in range(1, STEPS + 1):
        first = take(host, part, turn(session, number), labels_at)
        again = take(host, part, turn(session, number), labels_at)
        assert first[0] == again[0]
        assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert same(host.end(turn(session, STEPS + 1)), expected)


@BOTH
def test_a_step_out_of_turn_is_refused_and_changes_nothing(
    make: Make, part: AtHost, labels_at: str
) -> None:
    _, expected = whole_session(make(), part, labels_at)
    host = make()
    session = host.begin(part)
    for number in range(1, STEPS + 1):
        for wrong in (number - 1, number + 1, number + 7):
            if number == 1 or wrong != number - 1:
                with pytest.raises(RefusalError, match=f"step {wrong} of a session"):
                    take(host, part, turn(session, wrong), labels_at)
        if labels_at == "client":  # a first half alone, as of a client that was stopped
            inputs, _ = batch(number)
            host.forward(inputs.through(part).with_(turn=turn(session, number)), torch.tensor([3]))
        take(host, part, turn(session, number), labels_at)
    with pytest.raises(RefusalError):
        host.end(turn(session, STEPS + 2))
    assert same(host.end(turn(session, STEPS + 1)), expected)


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sessions_that_take_turns_are_as_alone(
    make: Make, part: AtHost, labels_at: str, checkpointing: bool
) -> None:
    """The two halves of one's step have the other's between them."""
    owners = (b"a", b"bb", b"ccc")
    alone = [whole_session(make(), part, labels_at, owner)[1] for owner in owners]
    host = make(checkpointing=checkpointing)
    begun = {owner: host.begin(part, owner) for owner in owners}
    for number in range(1, STEPS + 1):
        if labels_at == "server":
            for owner, session in begun.items():
                take(host, part, turn(session, number), labels_at, owner)
            continue
        graphs = {}
        for owner, session in begun.items():
            inputs, labels = batch(number + 10 * len(owner))
            positions = (labels >= 0).nonzero().squeeze(1)
            sent = inputs.through(part).with_(turn=turn(session, number))
            graphs[owner] = *host.forward(sent, positions, owner), labels[positions]
        for owner, (graph, logits, answers) in graphs.items():
            leaf = logits.requires_grad_()
            torch.nn.functional.cross_entropy(leaf, answers).backward()
            assert leaf.grad is not None
            host.backward(graph, leaf.grad, owner)
    for owner, expected in zip(owners, alone, strict=True):
        assert same(host.end(turn(begun[owner], STEPS + 1), owner), expected)


def test_requests_of_one_session_never_share_a_pass_with_others(make: Make, part: AtHost) -> None:
    owners = (b"a", b"bb")
    alone = [whole_session(make(), part, owner=owner)[1] for owner in owners]
    with QueuedLLM(make(), batch_tokens=1000, batch_wait=0.2) as queued:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda owner: whole_session(queued, part, owner=owner), owners))
    for (_, result), expected in zip(found, alone, strict=True):  # a pass holds other samples
        for name, value in expected.theta.items():
            assert torch.allclose(result.theta[name], value, rtol=1e-3, atol=1e-4)


def test_a_step_that_is_asked_for_twice_at_once_counts_once(make: Make, part: AtHost) -> None:
    """As where a connection broke unnoticed and the first call waits still."""
    _, expected = whole_session(make(), part)
    with QueuedLLM(make(), batch_tokens=1000, batch_wait=0.2) as queued, ThreadPoolExecutor(3) as p:
        session = queued.begin(part)
        for number in range(1, STEPS + 1):
            at = turn(session, number)
            calls = [p.submit(take, queued, part, at, "server") for _ in range(3)]
            assert len({float(call.result()[1][-1]) for call in calls}) == 1
        result = queued.end(turn(session, STEPS + 1))
    for name, value in expected.theta.items():
        assert torch.allclose(result.theta[name], value, rtol=1e-3, atol=1e-4)


def test_a_session_that_is_gone_is_said(make: Make, part: AtHost) -> None:
    host = make()
    session = host.begin(part)
    take(host, part, turn(session, 1), "server")
    for forget in (host.forget_sessions, lambda: host.begin(part)):
        forget()
        with pytest.raises(SessionGoneError):
            take(host, part, turn(session, 2), "server")
        with pytest.raises(SessionGoneError):
            host.end(turn(session, 2))


def test_a_session_is_its_owners_alone(make: Make, part: AtHost) -> None:
    host = make()
    session = host.begin(part, b"one")
    with pytest.raises(SessionGoneError):
        take(host, part, turn(session, 1), "server", b"another")


def test_there_is_room_for_so_many_sessions(
    make: Make, part: AtHost, start: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert part.lora is not None and part.lora.plan is not None
    each = session_bytes(start, part.lora.plan)
    assert each == 4 * sum(value.nbytes for value in start.values())  # two moments, a gradient
    for host in (make(limit=2), make(memory=2 * each)):
        for owner in (b"a", b"b", b"a"):  # one that begins anew takes the place of its own
            assert host.begin(part, owner)
        assert host.begin(part, b"c") == 0
        host.forget_sessions()
        assert host.begin(part, b"c")
    with pytest.raises(RefusalError, match=r"llm\.session-memory-mb"):
        make(memory=each - 1).begin(part)
    free = SimpleNamespace(available=each - 1)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(RefusalError, match=f"has {(each - 1) / MB:.0f} MB of free memory"):
        make().begin(part)


def test_a_client_waits_for_room_and_an_idle_session_gives_its_up(
    make: Make, part: AtHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, asked = make(limit=1), []
    gone = host.begin(part, b"gone")
    take(host, part, turn(gone, 1), "server", b"gone")
    service = SimpleNamespace(step=None, begin=lambda _: asked.append(1) or host.begin(part, b"a"))

    def sleep(seconds: float) -> None:
        if len(asked) == 3:
            monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)

    monkeypatch.setattr("fednano_flwr.exchange.exchange.time.sleep", sleep)
    turns = LowRankExchange(service).begin()  # type: ignore[arg-type]
    assert len(asked) == 4 and turns.session
    with pytest.raises(SessionGoneError):
        take(host, part, turn(gone, 2), "server", b"gone")
    take(host, part, turn(turns.session, 1), "server", b"a")


def test_what_is_measured_is_the_mean_squared_gradient(
    make: Make, start: dict[str, Tensor]
) -> None:
    """Against a whole pass of autograd, of the steps that measure alone."""
    part = AtHost(lora=HostLora(start, LoraPlan(0.05, 0.0, fisher=True)))
    host = make()
    session = host.begin(part)
    take(host, part, turn(session, 1), "server")
    kinds = {"updates": False, "measures": True}
    for number in (2, 3):
        take(host, part, turn(session, number, **kinds), "server")
    result = host.end(turn(session, 4))

    plain = make()
    places = plain._half.lora
    assert places is not None and result.fisher is not None
    values = places.placed(result.theta)
    for value in values.values():
        value.requires_grad_(True)
    places.use(values)
    squares = {name: torch.zeros_like(value) for name, value in values.items()}
    for number in (2, 3):
        inputs, labels = batch(number)
        rows = inputs.embeds.split(inputs.layout.lengths)
        found = plain._half.logits(
            torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True),
            torch.tensor([4, 9 + 8]),
            torch.arange(9) < torch.tensor(inputs.layout.lengths)[:, None],
        )
        loss = torch.nn.functional.cross_entropy(found, labels[labels >= 0])
        for name, one in zip(values, torch.autograd.grad(loss, list(values.values())), strict=True):
            squares[name] += one**2 / 2
    for name, value in squares.items():
        assert torch.allclose(result.fisher[name], value, rtol=1e-4, atol=1e-12), name


@pytest.mark.parametrize("factor", ["A", "B"])
def test_one_factor_alone_can_be_trained(make: Make, start: dict[str, Tensor], factor: str) -> None:
    moved = {name: value + 0.1 for name, value in start.items()}
    _, result = whole_session(
        make(), AtHost(lora=HostLora(moved, LoraPlan(0.05, 0.1, 0.0, factor)))
    )
    for name, value in moved.items():
        assert torch.equal(result.theta[name], value) == (f"lora_{factor}" not in name)


def test_a_gradient_that_is_not_finite_is_refused_and_the_session_goes_on(
    make: Make, part: AtHost
) -> None:
    _, expected = whole_session(make(), part)
    host = make()
    session = host.begin(part)
    take(host, part, turn(session, 1), "server")
    inputs, labels = batch(2)
    spoilt = inputs.with_(embeds=inputs.embeds * torch.inf, turn=turn(session, 2)).through(part)
    with pytest.raises(ValueError, match="not finite"):
        host.step(spoilt, labels)
    for number in range(2, STEPS + 1):
        take(host, part, turn(session, number), "server")
    assert same(host.end(turn(session, STEPS + 1)), expected)


def test_over_the_wire_a_session_costs_few_bytes_and_its_result_stays_at_the_server(
    make: Make, part: AtHost
) -> None:
    losses, expected = whole_session(make(), part)
    tokens, traffic = Tokens(1), []
    finished = FinishedSessions(make())
    with serve(finished, tokens=tokens) as address, tokens.open(1, "train", part) as token:
        with RemoteLLM(address, Caller(1, 7, 1, "train", token(7))) as remote:
            session = remote.begin(None)
            for number in range(1, STEPS + 1):
                inputs, labels = batch(number)
                for at in (None, turn(session, number)):
                    before = remote.traffic.bytes_up + remote.traffic.bytes_down
                    loss, gradient = remote.step(inputs.with_(turn=at), labels)
                    after = remote.traffic.bytes_up + remote.traffic.bytes_down
                    traffic.append(after - before)
                assert loss == pytest.approx(losses[number - 1], rel=1e-6)
                assert gradient[-1].dtype == torch.float64 and gradient[-1].shape == ()
            for _ in range(2):  # its reply may have been lost
                assert remote.end(turn(session, STEPS + 1)) is None
            with pytest.raises(SessionGoneError):
                remote.step(batch(1)[0].with_(turn=turn(session + 1, 1)), batch(1)[1])
    assert same(finished.result(b"1/7", session), expected)
    with pytest.raises(ValueError, match="no session"):
        finished.result(b"1/8", session)
    more = [with_turn - plain for plain, with_turn in zip(traffic[::2], traffic[1::2], strict=True)]
    assert 0 < max(more) <= 64


def test_a_session_that_is_ended_twice_at_once_has_its_result(make: Make, part: AtHost) -> None:
    """A result may be long on its way from a replica, and the client asks again meanwhile."""
    host, ended = make(), Event()
    real = host.end

    def slow(*arguments: Any) -> SessionResult:
        result = real(*arguments)
        ended.set()
        time.sleep(0.3)
        return result

    host.end = slow  # type: ignore[method-assign]
    finished = FinishedSessions(host)
    at = turn(finished.begin(part), 1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(finished.end, at)
        assert ended.wait(9)
        finished.end(at)
        first.result()
    assert finished.result(b"", at.session)


def test_of_each_client_the_latest_result_alone_is_kept(make: Make, part: AtHost) -> None:
    """So that one which trains again and again takes no more memory than another."""
    finished, numbers = FinishedSessions(make()), []
    for owner in (b"a", b"a", b"b"):
        numbers.append(finished.begin(part, owner))
        finished.end(turn(numbers[-1], 1), owner)
    assert finished.result(b"a", numbers[1]) and finished.result(b"b", numbers[2])
    with pytest.raises(ValueError, match=f"no session {numbers[0]} "):
        finished.result(b"a", numbers[0])


def test_a_call_that_brings_no_lora_is_refused_where_the_model_needs_one(make: Make) -> None:
    with pytest.raises(RefusalError, match="brings no LoRA"):
        make().score(batch(1)[0], torch.tensor([3]), torch.arange(4))


def test_without_the_site_no_session_begins(tiny_model: Path, part: AtHost) -> None:
    host = FrozenLLM(load_llm_half(str(tiny_model)))
    with pytest.raises(RefusalError, match=r"adapter\.sites"):
        host.begin(part)
    with pytest.raises(RefusalError, match=r"adapter\.sites"):
        host.begin(None)


def test_weights_of_every_layer_have_a_lora(tiny_model: Path, start: dict[str, Tensor]) -> None:
    half = load_llm_half(str(tiny_model))
    layers = len(decoder_layers(half.get_submodule("_host")))  # type: ignore[arg-type]
    assert len(start) == layers * 4 * 2  # q, k, v and o
