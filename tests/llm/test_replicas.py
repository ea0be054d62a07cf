"""Replicas answer as one host would, whatever happens to some of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

import fednano_flwr
from fednano_flwr.config import SITES, Adapter
from fednano_flwr.exchange.at_host import AtHost, HostLora, HostMap, LoraPlan, Turn
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.errors import (
    FeaturesMissingError,
    GraphGoneError,
    SessionGoneError,
)
from fednano_flwr.exchange.lowrank import LowRankInputs
from fednano_flwr.exchange.protocol import IGNORE, Feature, Layout, NewTokens
from fednano_flwr.llm.finished import FinishedSessions
from fednano_flwr.llm.host import HostMemoryError
from fednano_flwr.llm.replica_actor import ray_session, send_tensors_beside
from fednano_flwr.llm.replicas import Replicas, ReplicasLostError
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.lora import fresh_lora
from tests.llm import fakes
from tests.ray_start import second_chance

pytestmark = pytest.mark.slow  # Ray's start alone takes half a minute beside other tests
A = torch.ones(2)
TENSORS = {
    "bfloat16": torch.tensor([[1.5, -2.0, 3e38]], dtype=torch.bfloat16),
    "float16": torch.tensor([6e-8, 65504.0], dtype=torch.float16),
    "int64": torch.tensor([-(2**62), 3]),
    "bool": torch.tensor([[True], [False]]),
    "a single number": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "strided": torch.arange(24.0).reshape(4, 6).T[::2],
    "not finite": torch.tensor([float("nan"), float("inf")]),
    "with a graph": torch.ones(3, requires_grad=True) * 2,
}


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    start = partial(
        ray.init,
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    second_chance(start)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture
def said(lines: list[str]) -> list[str]:
    """What the replicas said in this test."""
    lines.clear()
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the `pair`."""
    return tmp_path_factory.mktemp("fakes")


@pytest.fixture(scope="module")
def two(folder: Path, lines: list[str]) -> Iterator[Replicas]:
    make = partial(fakes.Fake, folder)
    with Replicas(make, 2, say=lines.append, stall_seconds=2.0) as service:
        yield service


@pytest.fixture
def pair(two: Replicas, said: list[str]) -> Iterator[Replicas]:
    """Two replicas that are up; whoever ends one leaves it to be started again."""
    two._owners.clear()
    yield two
    assert eventually(lambda: both_up(two), 60.0)


def both_up(service: Replicas) -> bool:
    service._look()
    return all(replica.up for replica in service.replicas)


def process(service: Replicas, owner: bytes = b"", seconds: float = 0.0) -> int:
    """Of the replica that answers this owner."""
    return int(service.score(None, A, seconds, owner)[0])  # type: ignore[arg-type]


def told(service: Replicas, what: str, owner: bytes = b"") -> Any:
    return service.token_losses(what, A, A, owner)  # type: ignore[arg-type]


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def embeddings(seed: int, size: int) -> tuple[EmbeddingInputs, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    lengths = (5 + seed % 3, 3, 7)
    labels = torch.full((sum(lengths),), IGNORE)
    labels[[3, 6, 10]] = torch.randint(0, 64, (3,), generator=made)
    return EmbeddingInputs(torch.randn(sum(lengths), size, generator=made), Layout(lengths)), labels


def low_rank(seed: int, size: int) -> tuple[LowRankInputs, torch.Tensor, list[Feature]]:
    made = torch.Generator().manual_seed(seed)
    sites = torch.full((12,), SITES.index("text"), dtype=torch.int8)
    sites[2:6] = SITES.index("image")
    rows = {"image": 4, "text": 8}
    inputs = LowRankInputs(
        token_ids=torch.randint(3, 60, (8,), generator=made),
        sites=sites,
        keys=(b"picture",),
        z={site: torch.randn(n, 2, generator=made) for site, n in rows.items()},
        b={site: torch.randn(size, 2, generator=made) for site in rows},
        layout=Layout((12,)),
    )
    labels = torch.full((12,), IGNORE)
    labels[9] = 7
    return inputs, labels, [Feature(b"picture", torch.randn(4, size, generator=made))]


def test_two_replicas_and_many_owners_get_what_one_host_answers(tiny_model: Path) -> None:
    host = fakes.frozen(str(tiny_model))
    size = host.describe().hidden_size
    owners = [b"run/%d" % i for i in range(5)]
    one, other = (
        AtHost(HostMap({"text": (torch.eye(size)[:3], x * torch.ones(size, 3))})) for x in (1, 2)
    )
    maps = [one, other, one]

    def work(service: Any, owner: bytes) -> list[Any]:
        seed = owners.index(owner)
        inputs, labels = embeddings(seed, size)
        loss, (gradient,) = service.step(inputs, labels, owner)
        pictured, targets, features = low_rank(seed, size)
        with pytest.raises(FeaturesMissingError) as missing:
            service.step(pictured, targets, owner)
        assert missing.value.keys == (b"picture",)
        service.keep_features(features, owner)
        again, factors = service.step(pictured, targets, owner)
        where = torch.tensor([4, 7])
        scored = service.score(inputs, where, torch.tensor([1, 5, 9]), owner)
        losses = service.token_losses(pictured, where, where, owner)
        mapped = [service.token_losses(pictured.through(m), where, where, owner) for m in maps]
        assert not torch.equal(mapped[0], mapped[1]) and torch.equal(mapped[0], mapped[2])
        begun = service.prefill(service.reserve(40, owner).cache, pictured, owner)
        first = torch.tensor([0])
        token = NewTokens(first, begun.tokens, torch.ones(1, 2))
        then = service.decode(begun.cache, token, owner)
        service.release(then.cache, owner)
        gradient += 0  # may be written
        made = [loss, again, gradient, *factors, scored, losses, *mapped]
        return [*made, begun.tokens, then.tokens]

    with Replicas(partial(fakes.frozen, str(tiny_model)), 2) as service:
        assert service.describe() == host.describe()
        with ThreadPoolExecutor(5) as pool:
            found = list(pool.map(partial(work, service), owners))
        assert {service._replica_of(owner).number for owner in owners} == {0, 1}
    for owner, values in zip(owners, found, strict=True):
        for value, expected in zip(values, work(host, owner), strict=True):
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected)), owner


def test_a_client_whose_replica_is_killed_trains_anew_to_the_same_bits(tiny_model: Path) -> None:
    """In the middle of a session; what has ended is no longer at the replica."""
    adapter = Adapter(4, 8.0, 0.0, "llm", llm_rank=2)
    values = fresh_lora(ModelCheckpoint(str(tiny_model)), adapter, 0)
    part = AtHost(lora=HostLora(values, LoraPlan(0.05, 0.0)))
    size = ModelCheckpoint(str(tiny_model)).config.get_text_config().hidden_size

    def train(service: Any, owner: bytes, disturb: Callable[[int], None]) -> int:
        session = service.begin(part, owner)
        for number in range(1, 6):
            inputs, labels = embeddings(number + owners.index(owner), size)
            inputs = inputs.through(part).with_(turn=Turn(session, number, 0.9))
            service.step(inputs, labels, owner)
            disturb(number)
        service.end(Turn(session, 6, 0.9), owner)
        return session

    owners = [b"a", b"b"]
    alone = FinishedSessions(fakes.training(str(tiny_model)))
    expected = {o: alone.result(o, train(alone, o, lambda number: None)) for o in owners}
    with Replicas(partial(fakes.training, str(tiny_model)), 2) as replicas:
        service = FinishedSessions(replicas)
        first = train(service, b"a", lambda number: None)
        killed = []

        def disturb(number: int) -> None:
            if number == 3 and not killed:
                killed.append(replicas._replica_of(b"b"))
                ray.kill(killed[0].actor, no_restart=False)

        with pytest.raises(SessionGoneError):
            train(service, b"b", disturb)
        second = train(service, b"b", disturb)
        ray.kill(replicas._replica_of(b"a").actor, no_restart=False)
        for owner, session in ((b"a", first), (b"b", second)):
            found = service.result(owner, session)
            for name, value in expected[owner].theta.items():
                assert torch.equal(found.theta[name], value), name
        assert eventually(lambda: any(replica.up for replica in replicas.replicas), 60.0)
        service.forget_sessions()


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_arrives_as_it_was_in_memory_of_its_own(kind: str) -> None:
    send_tensors_beside()
    sent = TENSORS[kind]
    reference = ray.put({"x": [sent, sent]})
    first, second = (ray.get(reference)["x"][0] for _ in range(2))
    assert first.dtype == sent.dtype and first.shape == sent.shape and not first.requires_grad
    assert torch.equal(first.nan_to_num(), sent.nan_to_num())
    first.zero_()
    assert torch.equal(second.nan_to_num(), sent.nan_to_num())


def test_owners_are_spread_and_stay_and_calls_inside_a_replica_are_counted(pair: Replicas) -> None:
    homes = {owner: process(pair, owner) for owner in (b"a", b"b", b"c", b"d")}
    assert sorted(Counter(homes.values()).values()) == [2, 2]
    assert pair.gauges() == {"replicas_up": 2, "replica_calls": 0}
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(pair.score, None, A, 0.5, b"a") for _ in range(8)]  # type: ignore[arg-type]
        assert eventually(lambda: pair.gauges() == {"replicas_up": 2, "replica_calls": 8})
        inside = [call.result() for call in calls]
    assert {int(answer[0]) for answer in inside} == {homes[b"a"]}
    assert max(int(answer[2]) for answer in inside) > 4
    assert pair.gauges()["replica_calls"] == 0


def test_the_services_own_errors_and_code_arrive_as_they_are_and_no_replica_is_lost(
    pair: Replicas, said: list[str]
) -> None:
    with pytest.raises(FeaturesMissingError) as missing:
        told(pair, "missing")
    assert missing.value.keys == (b"a", b"b")
    with pytest.raises(RuntimeError, match="odd 7"):
        told(pair, "odd")
    assert told(pair, "code") == fednano_flwr.__file__
    assert not said
    travelled = ray.get(ray.put(HostMemoryError("a graph of 3 tokens", "full")))
    assert isinstance(travelled, HostMemoryError) and "3 tokens" in str(travelled)


def test_a_replica_killed_in_the_middle_of_calls_costs_none_of_them_and_comes_back(
    pair: Replicas, said: list[str]
) -> None:
    victim = process(pair, b"0")
    answers: list[torch.Tensor] = []

    def work(owner: int) -> None:
        for turn in range(12):
            sent = torch.tensor([float(owner), float(turn)])
            found = pair.score(None, sent, 0.1, b"%d" % owner)  # type: ignore[arg-type]
            assert found[1] == owner + turn
            answers.append(found)

    with ThreadPoolExecutor(6) as pool:
        working = [pool.submit(work, owner) for owner in range(6)]
        time.sleep(0.35)
        os.kill(victim, signal.SIGKILL)
        for each in working:
            each.result()
    assert len(answers) == 72
    assert eventually(lambda: both_up(pair))
    homes = Counter(process(pair, b"%d" % owner) for owner in range(6))
    assert sorted(homes.values()) == [3, 3] and victim not in homes
    assert ["is lost" in said[0], "is back" in said[1]] == [True, True] and len(said) == 2
    assert not any("\n" in line for line in said)


def test_a_graph_is_gone_with_its_replica(pair: Replicas) -> None:
    graph, logits = pair.forward(None, A, b"a")  # type: ignore[arg-type]
    assert torch.equal(pair.backward(graph, logits, b"a"), 2 * A + 1)  # type: ignore[arg-type]
    os.kill(process(pair, b"a"), signal.SIGKILL)
    with pytest.raises(GraphGoneError):
        pair.backward(graph, logits, b"a")


@pytest.mark.parametrize("how", ["its calls do not end", "its process is stopped"])
def test_a_hung_replica_is_replaced_and_its_calls_are_answered(
    pair: Replicas, folder: Path, said: list[str], how: str
) -> None:
    victim, other = process(pair, b"a"), process(pair, b"b")
    if how == "its calls do not end":
        (folder / "hang").write_text(str(victim))
        assert told(pair, "hang", b"a") == other
    else:
        os.kill(victim, signal.SIGSTOP)
        assert process(pair, b"a") == other
    assert "none of its calls ended for 2 s" in said[0]
    assert eventually(lambda: both_up(pair), 60.0) and not alive(victim)


def test_a_call_that_breaks_every_replica_is_refused_and_the_others_go_on(
    pair: Replicas, said: list[str]
) -> None:
    with pytest.raises(ReplicasLostError, match=r"3 LLM replicas.*token_losses.*device-side"):
        told(pair, "device", b"a")
    assert process(pair, b"b") > 0
    assert sum("device-side assert" in line for line in said) == 3


def test_replicas_that_cannot_start_end_with_the_reason(tmp_path: Path) -> None:
    def say(line: str) -> None:
        raise BrokenPipeError

    (tmp_path / "full").touch()
    with pytest.raises(ReplicasLostError, match="MemoryError: no room"):
        with Replicas(partial(fakes.Fake, tmp_path), 1, say=say):
            raise AssertionError("unreachable")
    assert not (tmp_path / "starts").exists()


def test_calls_wait_for_the_only_replica_and_fail_with_the_reason_when_it_cannot_start(
    tmp_path: Path, said: list[str]
) -> None:
    with Replicas(partial(fakes.Fake, tmp_path), 1, say=said.append) as service:
        first = process(service)
        os.kill(first, signal.SIGKILL)
        second = process(service)
        assert second != first
        (tmp_path / "full").touch()
        os.kill(second, signal.SIGKILL)
        with pytest.raises(ReplicasLostError, match=r"replica 0 was lost 2 times.*: no room"):
            process(service)
    assert "cannot be started" in said[-1]


def test_a_replica_that_comes_back_with_another_model_is_not_taken(
    tmp_path: Path, said: list[str]
) -> None:
    with Replicas(partial(fakes.Fake, tmp_path), 2, say=said.append) as service:
        first, second = process(service, b"a"), process(service, b"b")
        (tmp_path / "model").write_text("another")
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: len((tmp_path / "starts").read_text().split()) == 3)
        assert process(service, b"a") == second  # nobody has asked in between
        assert eventually(lambda: service._look() or len(said) == 2)
        assert process(service, b"a") == second and service.describe().model == "fake"
    assert all("another model than the first one" in line for line in said)


def test_more_gpus_than_ray_has_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 replicas .*llm\.replica-gpus.* 0 GPUs"):
        Replicas(partial(fakes.Fake, tmp_path), 2, num_gpus=0.5)


OWN_RAY = """
import sys, threading, psutil, ray
from functools import partial
from pathlib import Path
from fednano_flwr.llm.replicas import Replicas
from tests.llm import fakes

def work():
    with Replicas(partial(fakes.Fake, Path(sys.argv[1])), 1) as service:
        pid = int((Path(sys.argv[1]) / "starts").read_text())
        print(service.describe().model, pid in [p.pid for p in processes()])

def processes():
    return [p for p in psutil.Process().children(True) if p.status() != psutil.STATUS_ZOMBIE]

thread = threading.Thread(target=work)
thread.start()
thread.join()
psutil.wait_procs(processes(), timeout=10)
print(ray.is_initialized(), len(processes()))
"""


def test_where_nobody_has_started_ray_it_is_started_and_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWN_RAY, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["fake", "True", "False", "0"]


def test_ray_that_somebody_else_was_to_start_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setattr("fednano_flwr.llm.replica_actor.ray", nothing)
    with pytest.raises(TimeoutError, match=r"was not up in 0\.2 s"):
        with ray_session(wait_seconds=0.2):
            raise AssertionError("unreachable")


def test_nothing_is_left_after_the_end_even_of_a_call_in_flight(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = threading.active_count()
    with ThreadPoolExecutor(1) as pool:
        with Replicas(partial(fakes.Fake, tmp_path), 1, say=said.append) as service:
            flying = pool.submit(process, service, b"a", 30.0)
            assert eventually(lambda: service.gauges()["replica_calls"] == 1)
            assert len(list((tmp_path / "tmp").rglob("fednano-features-*"))) == 1
        with pytest.raises(ReplicasLostError, match="closed"):
            flying.result(timeout=10)
    assert threading.active_count() == before
    (pid,) = [int(line) for line in (tmp_path / "starts").read_text().split()]
    assert eventually(lambda: not alive(pid))
    assert not list((tmp_path / "tmp").iterdir())
    assert not said and ray.is_initialized()
    with pytest.raises(ReplicasLostError, match="closed"):
        process(service)
