"""Many clients at one host: each gets its own result, whoever else asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.errors import (
    FeaturesMissingError,
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
)
from fednano_flwr.exchange.lowrank import LowRankInputs
from fednano_flwr.exchange.protocol import IGNORE, Layout
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm import queued as queued_module
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf
from tests.batches import answered_at_the_end as batch

WAIT = 20  # seconds, for what takes milliseconds


def same(got: tuple[float, Any], expected: tuple[float, Any]) -> bool:
    (loss, (gradient,)), (wanted, (right,)) = got, expected
    near = abs(loss - wanted) <= 1e-6 * abs(wanted)
    return near and bool((gradient - right).abs().max() <= 1e-6 * right.abs().max())


class Gate(FrozenLLM):
    """A host that counts its passes and starts none while the gate is shut."""

    def __init__(self, half: LLMHalf, **arguments: Any) -> None:
        super().__init__(half, **arguments)
        self.gate, self.waiting = threading.Event(), threading.Event()
        self.gate.set()
        self.passes: list[set[bytes]] = []

    def serve(self, samples: Any) -> None:
        self.waiting.set()
        assert self.gate.wait(WAIT)
        self.passes.append({sample.job.owner for sample in samples})
        super().serve(samples)


@pytest.fixture
def host(llm_half: LLMHalf) -> Gate:
    return Gate(llm_half)


def shut(host: Gate, queued: QueuedLLM, pool: ThreadPoolExecutor) -> Future[Any]:
    """Hold the worker in a pass, so that what comes now waits in the queue."""
    host.gate.clear()
    host.waiting.clear()
    first = pool.submit(queued.step, *batch(99), b"first")
    assert host.waiting.wait(WAIT)
    return first


def waits(queued: QueuedLLM, count: int) -> None:
    with queued._changed:
        assert queued._changed.wait_for(lambda: len(queued._queue) == count, WAIT)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def test_sessions_are_forgotten_however_many_requests_wait(host: Gate) -> None:
    """Those of clients whose round ended without them fill the queue."""
    with QueuedLLM(host, max_waiting=1) as queued, ThreadPoolExecutor(2) as pool:
        late = [shut(host, queued, pool), pool.submit(queued.step, *batch(1), b"second")]
        waits(queued, 1)
        queued.forget_sessions()
        host.gate.set()
        assert all(call.result() for call in late)


def test_clients_that_share_passes_get_what_they_would_get_alone(
    host: Gate, pool: ThreadPoolExecutor
) -> None:
    lengths = {i: (5 + i % 3, 9, 7 + i % 5) for i in range(12)}
    alone = {i: host.step(*batch(i, lengths[i])) for i in lengths}
    host.passes.clear()
    with QueuedLLM(host, batch_tokens=120) as queued:
        first = shut(host, queued, pool)
        asked = {i: pool.submit(queued.step, *batch(i, lengths[i]), f"{i}".encode()) for i in alone}
        waits(queued, 12)
        host.gate.set()
        assert all(same(asked[i].result(WAIT), alone[i]) for i in alone)
        first.result(WAIT)
    assert max(len(owners) for owners in host.passes) > 3
    assert len(host.passes) < 8


def test_scores_and_losses_of_shared_passes_come_in_the_order_asked(
    host: Gate, pool: ThreadPoolExecutor
) -> None:
    positions, candidates = torch.tensor([13, 2, 4, 8]), torch.tensor([5, 1, 9])
    inputs = {i: batch(i, (5, 9))[0] for i in range(6)}
    scores = {i: host.score(inputs[i], positions, candidates) for i in inputs}
    tokens = torch.tensor([3, 6, 4, 2])
    losses = {i: host.token_losses(inputs[i], positions, tokens) for i in inputs}
    with QueuedLLM(host, batch_tokens=60) as queued:
        first = shut(host, queued, pool)
        found = [
            (
                pool.submit(queued.score, inputs[i], positions, candidates, f"{i}".encode()),
                pool.submit(queued.token_losses, inputs[i], positions, tokens, f"{i}".encode()),
            )
            for i in inputs
        ]
        waits(queued, 12)
        host.gate.set()
        for i, (score, loss) in enumerate(found):
            assert (score.result(WAIT) - scores[i]).abs().max() <= 1e-6 * scores[i].abs().max()
            assert (loss.result(WAIT) - losses[i]).abs().max() <= 1e-6 * losses[i].abs().max()
        first.result(WAIT)


def test_a_bad_request_in_a_shared_pass_costs_the_others_nothing(
    host: Gate, pool: ThreadPoolExecutor
) -> None:
    good = host.step(*batch(1))
    missing = LowRankInputs(
        torch.zeros(13, dtype=torch.int64), torch.arange(14) == 0, (b"x",), {}, {}, Layout((5, 9))
    )
    ill = EmbeddingInputs(torch.full((14, 48), torch.nan), Layout((5, 9)))
    with QueuedLLM(host, batch_tokens=1000) as queued:
        first = shut(host, queued, pool)
        lost = pool.submit(queued.step, missing, batch(1)[1], b"lost")
        nan = pool.submit(queued.step, ill, batch(1)[1], b"ill")
        fine = pool.submit(queued.step, *batch(1), b"fine")
        waits(queued, 3)
        host.gate.set()
        with pytest.raises(FeaturesMissingError):
            lost.result(WAIT)
        assert nan.result(WAIT)[0] != nan.result(WAIT)[0]
        assert same(fine.result(WAIT), good)
        first.result(WAIT)
    assert {b"lost", b"ill", b"fine"} in host.passes


def test_a_lone_client_never_waits_for_others(host: Gate) -> None:
    with QueuedLLM(host, batch_tokens=1000, batch_wait=10 * WAIT) as queued:
        for _ in range(3):
            queued.step(*batch(0), b"alone")
        assert len(host.passes) == 3


def test_a_pass_waits_for_a_client_that_has_been_asking(
    host: Gate, pool: ThreadPoolExecutor
) -> None:
    with QueuedLLM(host, batch_tokens=1000, batch_wait=WAIT) as queued:
        queued.step(*batch(1), b"first")
        held = pool.submit(queued.step, *batch(2), b"second")
        waits(queued, 1)
        asked = pool.submit(queued.step, *batch(3), b"first")
        held.result(WAIT), asked.result(WAIT)
    assert host.passes == [{b"first"}, {b"first", b"second"}]


def test_a_full_queue_and_a_greedy_client_are_told_the_bound(
    host: Gate, pool: ThreadPoolExecutor
) -> None:
    with QueuedLLM(host, max_waiting=3, owner_waiting=2) as queued:
        first = shut(host, queued, pool)
        own = [pool.submit(queued.step, *batch(i), b"greedy") for i in range(2)]
        waits(queued, 2)
        with pytest.raises(HostBusyError, match="2 requests of this client"):
            queued.step(*batch(3), b"greedy")
        modest = pool.submit(queued.step, *batch(4), b"modest")
        waits(queued, 3)
        with pytest.raises(HostBusyError, match="3 requests wait"):
            queued.step(*batch(3), b"late")
        host.gate.set()
        for answer in (first, modest, *own):
            answer.result(WAIT)


def test_a_client_told_that_the_host_is_busy_comes_again(
    host: Gate, pool: ThreadPoolExecutor
) -> None:
    expected = host.step(*batch(5))
    with QueuedLLM(host, max_waiting=1) as queued, serve(queued) as address:
        first = shut(host, queued, pool)
        second = pool.submit(queued.step, *batch(1), b"second")
        waits(queued, 1)
        with RemoteLLM(address, Caller(node=3), retry_seconds=0.3) as impatient:
            with pytest.raises(HostUnreachableError, match="1 requests wait"):
                impatient.step(*batch(5))
        with RemoteLLM(address, Caller(node=4), retry_seconds=WAIT) as patient:
            patient.describe()
            late = pool.submit(patient.step, *batch(5))
            assert not late.done()
            host.gate.set()
            assert same(late.result(WAIT), expected)
        first.result(WAIT), second.result(WAIT)


def test_what_a_vanished_client_asked_for_is_not_computed(
    host: Gate, pool: ThreadPoolExecutor
) -> None:
    with QueuedLLM(host) as queued, serve(queued) as address:
        first = shut(host, queued, pool)
        vanishing = RemoteLLM(address, Caller(node=7), retry_seconds=0.1)
        vanishing.describe()
        asked = pool.submit(vanishing.step, *batch(1))
        waits(queued, 1)
        vanishing.close()
        with pytest.raises((HostRefusedError, HostUnreachableError)):
            asked.result(WAIT)
        (entry,) = queued._queue._waiting[b"0/7"]
        until(lambda: not entry.work.is_wanted())  # the service has seen that the client is gone
        host.gate.set()
        first.result(WAIT)
        queued.step(*batch(2), b"next")
    assert host.passes == [{b"first"}, {b"next"}]


@pytest.mark.parametrize("end", ["closed", "its worker has ended"])
def test_a_host_that_ends_lets_nobody_wait(
    host: Gate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def ended(*_: Any) -> None:
        raise SystemExit

    queued = QueuedLLM(host)
    first = shut(host, queued, pool)
    left = pool.submit(queued.step, *batch(1), b"left")
    waits(queued, 1)
    if end == "closed":
        closing = pool.submit(queued.close)
    else:
        monkeypatch.setattr(queued, "_next", ended)
    host.gate.set()
    first.result(WAIT)
    for asked in (left, pool.submit(queued.step, *batch(2))):
        with pytest.raises(HostBusyError, match="closing"):
            asked.result(WAIT)
    if end == "closed":
        closing.result(WAIT)


def test_an_error_in_forgetting_what_is_over_does_not_end_the_worker(
    host: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def expire() -> None:
        raise RuntimeError("CUDA error: unknown")

    monkeypatch.setattr(queued_module, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(host, "expire", expire)
    with QueuedLLM(host) as queued:
        until = time.monotonic() + WAIT
        while queued.gauges()["worker_errors"] < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert queued.step(*batch(1))[0] > 0
        assert queued.gauges()["worker_errors"] >= 2
    assert len([r for r in caplog.records if r.exc_info]) == 1


def test_an_error_between_passes_is_answered_to_its_requests_and_the_next_are_served(
    host: Gate, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: in emptying the cache")

    with QueuedLLM(host) as queued:
        for owner, name in ((host, "serve"), (queued._queue, "next"), (queued, "_seconds_to_wait")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, broken)
                asked = [pool.submit(queued.step, *batch(1), bytes([n])) for n in range(3)]
                for one in asked:
                    with pytest.raises(RuntimeError, match="emptying the cache"):
                        one.result(WAIT)
            assert pool.submit(queued.step, *batch(1)).result(WAIT)[0] > 0


class Broken:
    """Metrics of which every method fails, those of its blocks at the beginning or at the end."""

    def __init__(self, late: bool) -> None:
        self._late = late

    def add_gauges(self, gauges: object) -> None:
        pass

    def answered(self, *_: object) -> None:
        raise KeyError("metrics")

    computed = transferred = answered

    @contextmanager
    def stream(self, *_: object) -> Iterator[None]:
        if not self._late:
            raise KeyError("metrics")
        yield
        raise KeyError("metrics")

    forward_pass = stream


@pytest.mark.parametrize("late", [False, True])
def test_metrics_that_fail_cost_no_call_and_are_logged_once(
    host: Gate, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Broken(late)
    with (
        QueuedLLM(host, metrics=metrics) as queued,
        serve(queued, metrics=metrics) as address,
        RemoteLLM(address, retry_seconds=0) as remote,
    ):
        for seed in range(3):
            assert remote.step(*batch(seed))[0] > 0
        with pytest.raises(HostRefusedError, match="out of range"):
            remote.score(batch(0)[0], torch.tensor([99]), torch.tensor([1]))
        assert queued.gauges()["worker_errors"] == 0
    assert 0 < len([r for r in caplog.records if "llm.metrics" in r.message]) <= 2


class Small:
    """A language model whose device has room for so many tokens at once."""

    def __init__(self, half: LLMHalf, room: int) -> None:
        self._half, self._room = half, room
        self.passes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._half, name)

    def logits(self, embeds: Tensor, *rest: Any) -> Tensor:
        tokens = embeds.shape[0] * embeds.shape[1]
        if tokens > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.passes.append(tokens)
        return self._half.logits(embeds, *rest)


def test_out_of_memory_splits_the_pass_and_is_said_once(
    llm_half: LLMHalf, caplog: pytest.LogCaptureFixture
) -> None:
    small: Any = Small(llm_half, room=20)
    lengths = (9, 8, 7, 6, 5)
    labels = batch(1, lengths)[1]
    labels[-1] = IGNORE  # a sample without an answer may be alone in its pass
    inputs = batch(1, lengths)[0]
    expected = FrozenLLM(llm_half).step(inputs, labels)
    host = FrozenLLM(small)
    for _ in range(2):
        assert same(host.step(inputs, labels), expected)
    assert len(small.passes) >= 4 and max(small.passes) <= 20
    assert len([r for r in caplog.records if "memory" in r.message]) == 1
    last = torch.tensor(lengths).cumsum(0) - 1
    scores = host.score(inputs, last, torch.arange(64))
    assert (scores - FrozenLLM(llm_half).score(inputs, last, torch.arange(64))).abs().max() < 1e-5


def test_a_sample_that_does_not_fit_memory_alone_is_refused_with_what_to_do(
    llm_half: LLMHalf,
) -> None:
    small: Any = Small(llm_half, room=20)
    with serve(FrozenLLM(small)) as address, RemoteLLM(address) as remote:
        with pytest.raises(HostRefusedError, match=r"one sample of 30 tokens.*llm\.checkpointing"):
            remote.step(*batch(1, (5, 30, 4)))
        with pytest.raises(HostRefusedError, match=r"a graph of 39 tokens.*batch-size"):
            remote.forward(batch(1, (5, 30, 4))[0], torch.tensor([38]))
        assert remote.step(*batch(1, (5, 4)))[0] > 0
