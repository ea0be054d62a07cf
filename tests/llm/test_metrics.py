"""What can be read of a service while it runs, against what was really asked of it."""

from __future__ import annotations

import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from fednano_flwr import server_app
from fednano_flwr.ask.serve import llm_config, serving
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.exchange.errors import HostRefusedError, HostUnreachableError
from fednano_flwr.exchange.protocol import Feature, NewTokens
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.nodes import NodeLimits
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.in_process import run_in_process
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.metrics import GAUGES, PREFIX, check_metrics, open_metrics
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.runs.results import load_run
from tests.batches import answered_at_the_end as batch
from tests.conftest import REPOSITORY

LOOPBACK = "127.0.0.1:0"
WAIT = 10.0
Labels = dict[str, str]


class Page:
    """What a service shows, by name and labels."""

    def __init__(self, address: str) -> None:
        self.url = f"http://{address}/metrics"

    def read(self) -> dict[str, list[tuple[Labels, float]]]:
        with urllib.request.urlopen(self.url, timeout=WAIT) as page:
            text = page.read().decode()
        found: dict[str, list[tuple[Labels, float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def of(self, name: str, **labels: str) -> float:
        """The one value of a metric with these labels; 0 where there is none."""
        values = [v for found, v in self.read().get(PREFIX + name, []) if found == labels]
        assert len(values) <= 1
        return values[0] if values else 0.0

    def comes_to(self, expected: float, name: str, **labels: str) -> bool:
        """Whether a value is reached that another thread sees to."""
        until = time.monotonic() + WAIT
        while self.of(name, **labels) != expected and time.monotonic() < until:
            time.sleep(0.02)
        return self.of(name, **labels) == expected


@contextmanager
def measured(half: LLMHalf, **arguments: Any) -> Iterator[tuple[str, Page]]:
    """A service of 100 tokens a request, and its page."""
    said: list[str] = []
    host = FrozenLLM(half, max_tokens=100, features=FeatureStore(2**20))
    with (
        open_metrics(LOOPBACK, said.append) as metrics,
        QueuedLLM(host, metrics=metrics) as queued,
        serve(queued, metrics=metrics, **arguments) as address,
    ):
        yield address, Page(said[0].split("http://")[1].removesuffix("/metrics"))


@pytest.fixture
def service(llm_half: LLMHalf) -> Iterator[tuple[str, Page]]:
    with measured(llm_half) as found:
        yield found


def test_calls_tokens_and_bytes_are_those_that_were_sent(service: tuple[str, Page]) -> None:
    address, page = service
    inputs, labels = batch(0, (5, 9))
    with RemoteLLM(address, dtype="float32", retry_seconds=0.5) as remote:
        info = remote.describe()
        remote.register(info.model, info.fingerprint, info.hidden_size)
        for _ in range(3):
            remote.step(inputs, labels)
        remote.score(inputs, torch.tensor([13]), torch.tensor([1, 2]))
        with pytest.raises(HostRefusedError, match=r"llm\.max-tokens"):
            remote.step(*batch(0, (101,)))
        for kind, calls in {"describe": 1, "register": 1, "step": 3, "score": 1}.items():
            assert page.of("calls_total", kind=kind, outcome="served") == calls
        assert page.of("calls_total", kind="step", outcome="refused") == 1
        assert page.of("refusals_total", reason="RefusalError") == 1
        assert page.of("tokens_total") == 4 * (5 + 9)
        assert page.of("received_bytes_total") == remote.traffic.bytes_up
        assert page.of("sent_bytes_total") == remote.traffic.bytes_down
        assert page.of("open_streams") == 1
    assert page.comes_to(0, "open_streams")
    assert page.comes_to(3, "compute_seconds_count", kind="step")
    assert page.comes_to(1, "compute_seconds_count", kind="score")
    assert page.of("wait_seconds_count", kind="step") == 3
    assert 0 < page.of("compute_seconds_sum", kind="step") < WAIT
    assert 0 < page.of("wait_seconds_sum", kind="step") < WAIT
    assert page.of("pass_requests_sum") == page.of("pass_requests_count") == 4
    assert page.of("pass_tokens_sum") == 4 * (5 + 9)


def test_what_is_kept_between_calls_is_shown_as_long_as_it_is(service: tuple[str, Page]) -> None:
    address, page = service
    with RemoteLLM(address, dtype="float32", retry_seconds=0.5) as remote:
        remote.keep_features([Feature(b"k", torch.zeros(3, 48))])
        assert page.of("feature_memory_bytes") == 3 * 48 * 4
        assert page.of("feature_disk_bytes") == 0
        inputs, first = batch(0, (5, 5))[0], torch.tensor([0])
        found = remote.prefill(remote.reserve(2 * 7).cache, inputs)
        assert (page.of("kept_caches"), page.of("kept_cache_tokens")) == (1, 14)
        new = NewTokens(first, found.tokens[:1], torch.zeros(1, 48))
        found = remote.decode(found.cache, new)
        assert (page.of("kept_caches"), page.of("kept_cache_tokens")) == (1, 7)
        assert page.of("tokens_total") == 11
        with RemoteLLM(address, Caller(node=1), "float32") as other:
            assert other.reserve(100).cache == 0 and page.of("waiting_for_room") == 1
        remote.release(found.cache)
        assert (page.of("kept_caches"), page.of("kept_cache_tokens")) == (0, 0)
        inputs, _ = batch(0, (5,))
        graph, logits = remote.forward(inputs, torch.tensor([4]))
        assert page.of("open_graphs") == 1
        remote.backward(graph, torch.zeros_like(logits))
        assert page.of("open_graphs") == 0
        assert page.of("waiting_requests") == page.of("waiting_tokens") == 0
        for kind in ("keep_features", "prefill", "decode", "release", "forward", "backward"):
            assert page.of("calls_total", kind=kind, outcome="served") == 1
        assert page.of("calls_total", kind="reserve", outcome="served") == 2


def test_requests_that_wait_are_counted_while_they_do(
    llm_half: LLMHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_gate, inside = threading.Event(), threading.Event()
    serve_samples = FrozenLLM.serve

    def gated(self: FrozenLLM, samples: Any) -> None:
        inside.set()
        assert open_gate.wait(WAIT)
        serve_samples(self, samples)

    monkeypatch.setattr(FrozenLLM, "serve", gated)
    said: list[str] = []
    host = FrozenLLM(llm_half)
    with open_metrics(LOOPBACK, said.append) as metrics, ThreadPoolExecutor(3) as pool:
        with QueuedLLM(host, batch_tokens=100, metrics=metrics) as queued:
            page = Page(said[0].split("http://")[1].removesuffix("/metrics"))
            asked = [pool.submit(queued.step, *batch(0, (5, 9)), b"first")]
            assert inside.wait(WAIT)
            asked += [pool.submit(queued.step, *batch(0, (7,)), o) for o in (b"a", b"b")]
            assert page.comes_to(2, "waiting_requests")
            assert page.of("waiting_tokens") == 14
            open_gate.set()
            for one in asked:
                one.result(WAIT)
            assert page.comes_to(3, "compute_seconds_count", kind="step")
            assert page.of("pass_requests_bucket", le="1.0") == 1  # and then two in one pass
            assert (page.of("pass_requests_count"), page.of("pass_requests_sum")) == (2, 3)
            assert page.of("pass_tokens_sum") == 28


def test_refusals_are_told_apart_and_no_label_names_a_client(llm_half: LLMHalf) -> None:
    tokens = Tokens(5)
    with (
        measured(llm_half, tokens=tokens, limits=NodeLimits(0.2)) as (address, page),
        tokens.open(1, "train") as token,
    ):
        for node in range(20, 24):
            caller = Caller(5, node, 1, "train", token(node))
            with RemoteLLM(address, caller, "float32", retry_seconds=0) as remote:
                remote.step(*batch(0))
                with pytest.raises(HostUnreachableError, match=r"llm\.node-requests-per-second"):
                    remote.step(*batch(0))
        with RemoteLLM(address, Caller(5, 20, 1, "train", "wrong"), retry_seconds=0.2) as remote:
            with pytest.raises(HostRefusedError):
                remote.describe()
        with grpc.insecure_channel(address) as channel:
            session = channel.stream_stream("/fednano.v1.LLM/Session")
            sent = [b"\xff no call"]
            (answer,) = session(
                iter(sent), metadata=Caller(5, 30, 1, "train", token(30)).metadata()
            )
            assert "no call" in pb.Answer.FromString(answer).refused
        assert page.of("calls_total", kind="step", outcome="served") == 4
        assert page.of("refusals_total", reason="HostBusyError") == 4
        assert page.of("refusals_total", reason="TokenError") == 1
        assert page.of("refusals_total", reason="RefusalError") == 1
        assert page.of("calls_total", kind="none", outcome="refused") == 2
        labels = {key for values in page.read().values() for found, _ in values for key in found}
        assert labels == {"kind", "outcome", "reason", "le"}
        gauges = {name.removeprefix(PREFIX) for name in page.read()} & set(GAUGES)
        assert gauges == {name for name in GAUGES if not name.startswith("replica")}


def test_a_failing_host_is_counted_as_that(llm_half: LLMHalf) -> None:
    with measured(llm_half) as (address, page), pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenLLM, "_serve_together", lambda *_: 1 / 0)
        with RemoteLLM(address, dtype="float32", retry_seconds=0.2) as remote:
            with pytest.raises(HostRefusedError, match="ZeroDivisionError"):
                remote.step(*batch(0))
        assert page.of("calls_total", kind="step", outcome="failed") == 1
        assert page.of("refusals_total", reason="other") == 1
        assert page.of("tokens_total") == 0


def test_two_services_in_one_process_count_their_own_and_their_pages_end_with_them(
    llm_half: LLMHalf,
) -> None:
    with ExitStack() as stack:
        services = [stack.enter_context(measured(llm_half)) for _ in range(2)]
        for calls, (address, _) in enumerate(services, 1):
            with RemoteLLM(address, dtype="float32", retry_seconds=0.5) as remote:
                for _ in range(calls):
                    remote.step(*batch(0))
        assert [p.of("calls_total", kind="step", outcome="served") for _, p in services] == [1, 2]
    with pytest.raises(OSError, match="refused"):
        services[0][1].read()


def listening() -> int:
    """TCP ports that this process listens on."""
    connections = psutil.Process().net_connections("tcp")
    return sum(one.status == psutil.CONN_LISTEN for one in connections)


def test_off_is_the_default_and_opens_no_port(run_config: Callable[..., dict[str, Any]]) -> None:
    config = RunConfig.parse(run_config())
    before = listening()
    with open_metrics(config.llm.metrics, pytest.fail):
        assert listening() == before
    with open_metrics(LOOPBACK, lambda line: None):
        assert listening() == before + 1


def test_a_taken_port_is_an_error_that_names_the_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match=rf"{where} \(llm\.metrics\)"):
            with open_metrics(where, print):
                pass


@pytest.mark.parametrize("where", ["9464", "localhost", "127.0.0.1:70000", "::1:9464", ":9464"])
def test_a_place_that_is_none_is_refused_with_its_key(
    run_config: Callable[..., dict[str, Any]], where: str
) -> None:
    with pytest.raises(ConfigError, match=r"llm\.metrics = "):
        RunConfig.parse(run_config(llm__metrics=where))


def test_without_the_package_the_key_is_refused_before_anything_starts(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednano_flwr.llm.metrics.prometheus", None)
    check_metrics("")
    with pytest.raises(ConfigError, match=r'pip install "fednano-flwr\[prometheus\]"'):
        check_metrics(LOOPBACK)


def test_a_runs_bytes_are_its_clients_step_traffic(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    seen: list[tuple[float, float]] = []

    def line(record: dict[str, Any], label: str) -> str:
        (where,) = [text for text in said if text.startswith("metrics ")]
        page = Page(where.split("http://")[1].removesuffix("/metrics"))
        seen.append((page.of("received_bytes_total"), page.of("sent_bytes_total")))
        return ""

    monkeypatch.setattr(server_app, "say", lambda text="": said.append(text))
    monkeypatch.setattr(server_app, "round_line", line)
    config = RunConfig.parse(run_config(llm__metrics=LOOPBACK, num_server_rounds=1))
    rounds = load_run(run_in_process(config, 2).path).rounds
    keys = ("step_bytes_up", "step_bytes_down")
    assert seen[0] == tuple(rounds[0][key] for key in keys)
    assert seen[1] == tuple(rounds[0][key] + rounds[1][key] for key in keys)


def test_every_metric_is_documented_and_there_is_no_other(service: tuple[str, Page]) -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = page.partition("\n## Prometheus\n")[2]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)", row)}
    with urllib.request.urlopen(service[1].url, timeout=WAIT) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        found = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    made = {name for name in found if not name.endswith("_created")}
    assert documented == {name.removeprefix(PREFIX) for name in made} | set(GAUGES)


def test_a_service_for_questions_says_where_its_metrics_are(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = llm_config(REPOSITORY, {"metrics": LOOPBACK}, [], tmp_path)
    said: list[str] = []
    with serving(str(tiny_model), config, tmp_path / "token", said.append):
        page = Page(said[0].split("http://")[1].removesuffix("/metrics"))
        assert page.of("waiting_requests") == 0 and PREFIX + "kept_caches" in page.read()
