"""Features are sent before a step names them, and in fewer bytes where the host can make them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from fednano_flwr import client_app, server_app
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.edge.client import Client
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question
from fednano_flwr.edge.training import embedded
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.errors import HostBusyError
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import ConnectorInput, Feature, LLMService
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.exchange.wire.methods import METHODS
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.connector import HostConnectors
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.runs.folder import RunFolder
from tests.exchange.test_lowrank import FEATURE_BYTES, close, gradients
from tests.local_grid import LocalGrid
from tests.outcome import adapters, assert_same

READ_BYTES = 9 * 32 * 4
"""What the connector reads of one picture of the tiny model."""
Config = Callable[..., dict[str, Any]]


@pytest.fixture
def able(llm_half: LLMHalf, tiny_model: Path) -> FrozenLLM:
    """A host that has the connector."""
    checkpoint = ModelCheckpoint(str(tiny_model))
    connectors = HostConnectors(checkpoint, torch.device("cpu"), torch.float32)
    return FrozenLLM(llm_half, max_tokens=1000, connectors=connectors)


@pytest.fixture
def small(edge: NanoEdge) -> NanoEdge:
    """A client that sends what the connector reads."""
    return NanoEdge(edge.frozen, edge.tokens, edge.adapters, edge.encoder, connector_at_host=True)


@pytest.fixture
def asked(able: FrozenLLM) -> Iterator[RemoteLLM]:
    with serve(able) as address, RemoteLLM(address, Caller(1, 7), retry_seconds=20) as remote:
        yield remote


def test_a_batch_that_was_prepared_is_sent_once_and_its_bytes_are_counted(
    remote: RemoteLLM, edge: NanoEdge, questions: list[Question], host: FrozenLLM
) -> None:
    expected = gradients(LowRankExchange(FrozenLLM(host._half)), edge, questions)
    exchange, calls = LowRankExchange(remote), []
    real = remote._host.ask
    remote._host.ask = lambda call, read: calls.append(call) or real(call, read)  # type: ignore
    batch = edge.embed(questions)
    exchange.prepare(batch)
    exchange.prepare(batch)
    sent = remote.traffic.bytes_up
    assert 4 * FEATURE_BYTES < sent < 5 * FEATURE_BYTES and host.features.count(b"1/7") == 4
    waited = remote.traffic.seconds
    assert close(gradients(exchange, edge, questions), expected)
    steps = [call for call in map(pb.Call.FromString, calls) if call.HasField("step")]
    assert len(steps) == 1 and waited < remote.traffic.seconds


def test_what_the_host_has_is_not_sent_again(
    remote: RemoteLLM, edge: NanoEdge, questions: list[Question]
) -> None:
    """As in the next round, whose client may be a new process."""
    batch = edge.embed(questions)
    LowRankExchange(remote).prepare(batch)
    before = remote.traffic.bytes_up
    LowRankExchange(remote).prepare(batch)
    assert remote.traffic.bytes_up - before < 4 * 64
    EmbeddingsExchange(remote).prepare(batch)
    assert remote.traffic.calls == 4  # describe, lacks, keep_features, lacks


def test_the_next_batch_is_sent_while_the_host_works_on_one(
    edge: NanoEdge, questions: list[Question], host: FrozenLLM
) -> None:
    exchange = LowRankExchange(host)
    pictured = [question for question in questions if question.sample.images]
    batches = embedded(edge, exchange, [[one] for one in pictured])
    _, frozen = next(batches)
    kept = {key for key in (f.key for f in frozen.features) if host.features.has(b"", key)}
    assert len(kept) == 1
    next(batches)  # once it is here, the one after it is on its way
    next(batches)
    assert host.features.count(b"") >= 3
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("labels_at", ["server", "client"])
def test_a_host_with_the_connector_gives_the_same_bits_for_fewer(
    able: FrozenLLM,
    asked: RemoteLLM,
    edge: NanoEdge,
    small: NanoEdge,
    questions: list[Question],
    labels_at: str,
) -> None:
    expected = gradients(LowRankExchange(FrozenLLM(able._half), labels_at), edge, questions)
    exchange = LowRankExchange(asked, labels_at)
    exchange.prepare(small.embed(questions))
    assert 4 * READ_BYTES < asked.traffic.bytes_up < 4 * READ_BYTES + 4 * 128
    assert all(map(torch.equal, gradients(exchange, small, questions), expected))
    able.features.close()  # gone: the step names it, and it is sent again
    assert all(map(torch.equal, gradients(exchange, small, questions), expected))


def test_a_client_without_the_option_sends_features_to_the_same_host(
    asked: RemoteLLM, able: FrozenLLM, edge: NanoEdge, questions: list[Question]
) -> None:
    expected = gradients(LowRankExchange(FrozenLLM(able._half)), edge, questions)
    assert all(map(torch.equal, gradients(LowRankExchange(asked), edge, questions), expected))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_what_the_connector_reads_in_fewer_bits_gives_nearly_the_same_gradients(
    able: FrozenLLM, edge: NanoEdge, small: NanoEdge, questions: list[Question], dtype: str
) -> None:
    expected = gradients(LowRankExchange(FrozenLLM(able._half)), edge, questions)
    with serve(able) as address, RemoteLLM(address, dtype=dtype) as remote:
        got = gradients(LowRankExchange(remote), small, questions)
    for one, other in zip(got, expected, strict=True):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98


def test_a_restarted_host_is_sent_again_what_its_connector_reads(
    llm_half: LLMHalf, tiny_model: Path, small: NanoEdge, questions: list[Question]
) -> None:
    def host() -> FrozenLLM:
        checkpoint = ModelCheckpoint(str(tiny_model))
        connectors = HostConnectors(checkpoint, torch.device("cpu"), torch.float32)
        return FrozenLLM(llm_half, connectors=connectors)

    with serve(host()) as address:
        remote = RemoteLLM(address, Caller(run=1, node=7), retry_seconds=20)
        exchange = LowRankExchange(remote)
        exchange.prepare(small.embed(questions))
        expected = gradients(exchange, small, questions)
    with serve(host(), port=int(address.rpartition(":")[2])):
        assert all(map(torch.equal, gradients(exchange, small, questions), expected))
    remote.close()


def entry(site: str = "image", shape: tuple[int, ...] = (1, 9, 32)) -> pb.FeatureEntry:
    read = codec.encode(torch.ones(shape), "float32")
    return pb.FeatureEntry(key=b"k", site=site, read=read)


@pytest.mark.parametrize(
    ("sent", "has_connector", "message"),
    [
        (entry(), False, "no connector of site 'image'"),
        (entry("audio"), True, "no connector of site 'audio'"),
        (entry("smell"), True, "no connector of site 'smell'"),
        (entry(shape=(0, 9, 32)), True, "(0, 9, 32): it may have 1 to"),
        (entry(shape=(2000, 32)), True, "(2000, 32): it may have 1 to"),
        (entry(shape=(9, 31)), True, "reads nothing of shape (9, 31)"),
        (entry(shape=(1, 1200, 32)), True, "1200 rows"),
    ],
)
def test_what_a_connector_cannot_read_is_refused(
    able: FrozenLLM, host: FrozenLLM, sent: pb.FeatureEntry, has_connector: bool, message: str
) -> None:
    call = pb.Call(keep_features=pb.KeepFeaturesRequest(features=[sent]))
    call.keep_features.header.CopyFrom(Caller().header())
    answer = Dispatcher(able if has_connector else host).answer(call.SerializeToString(), b"1/2")
    assert message in answer.refused


def test_a_shape_of_very_many_axes_is_refused_at_once(able: FrozenLLM) -> None:
    """The product of so many sizes takes seconds, in which nobody is served."""
    sent = pb.FeatureEntry(key=b"k", site="image")
    sent.read.shape.extend([2**32 - 1] * 60_000)
    request, started = pb.KeepFeaturesRequest(features=[sent]), time.process_time()
    with pytest.raises(ValueError, match="it may have 1 to"):
        METHODS["keep_features"].read(request, able.describe())
    assert time.process_time() - started < 0.3


class DeviceError(RuntimeError):
    """As `torch.AcceleratorError`."""


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (torch.OutOfMemoryError("tried to allocate 2 GiB\nand more"), HostBusyError),
        (DeviceError("an illegal memory access"), DeviceError),
    ],
)
def test_a_device_that_fails_under_a_connector_is_no_wrong_shape(
    able: FrozenLLM, monkeypatch: pytest.MonkeyPatch, error: Exception, seen: type[Exception]
) -> None:
    """Memory is short when many clients send at once: they send it again."""
    feature = Feature(b"k", torch.ones(9, 48), ConnectorInput("image", torch.ones(1, 9, 32)))
    assert able._connectors is not None
    with monkeypatch.context() as patch:
        failing = mock.Mock(side_effect=error)
        patch.setattr(able._connectors._modules["image"], "forward", failing)
        with pytest.raises(seen, match=r"2 GiB\)$|illegal"):
            able.keep_features([feature])
    able.keep_features([feature])
    assert able.lacks([b"k"]) == []


class OneBatch(FrozenLLM):
    """A host with room for one batch's features; a client sends ahead one feature at a time."""

    again = threading.Event()

    def beside(self) -> LLMService:
        slow = mock.Mock(wraps=self)
        slow.keep_features = self._slowly
        return slow

    def _slowly(self, features: Sequence[Feature]) -> None:
        for feature in features:
            super().keep_features([feature])
            self.again.clear()
            self.again.wait(0.2)

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        super().keep_features(features, owner)
        if threading.current_thread() is threading.main_thread():
            self.again.set()
            time.sleep(0.05)  # in which more of the next batch comes


def test_what_is_sent_ahead_does_not_push_out_a_batch_that_is_sent_again(
    edge: NanoEdge, questions: list[Question], llm_half: LLMHalf
) -> None:
    batch = edge(questions)
    ahead = [replace(one, key=b"next" + one.key) for one in batch.features]
    host = OneBatch(llm_half, 1000, FeatureStore(len(ahead) * FEATURE_BYTES))
    exchange = LowRankExchange(host)
    host.keep_features(batch.features)
    sending = threading.Thread(
        target=exchange.prepare, args=(replace(batch, features=(*ahead, *ahead)),)
    )
    sending.start()
    while not host.features.has(b"", ahead[0].key):
        time.sleep(0.001)
    gradients(exchange, edge, questions)
    sending.join()


def test_in_one_process_a_host_without_the_connector_refuses_what_it_reads(host: FrozenLLM) -> None:
    feature = Feature(b"k", torch.ones(9, 48), ConnectorInput("image", torch.ones(1, 9, 32)))
    with pytest.raises(ValueError, match=r"exchange\.connector-at"):
        host.keep_features([feature])


def run(flat: dict[str, Any]) -> RunFolder:
    return server_app.federate(LocalGrid(client_app.app, flat, 3), 1, RunConfig.parse(flat))


@pytest.mark.parametrize("strategy", ["rolora", "fedavg-exact"])
def test_a_run_is_the_same_to_the_bit_with_the_connector_at_the_host(
    run_config: Config, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the host forgets features now and then."""
    flat = run_config(strategy__name=strategy)
    plain = run({**flat, "run.name": "plain"})
    real, calls = FeatureStore.get, []

    def forgetful(store: FeatureStore, owner: bytes, key: bytes) -> Any:
        calls.append(key)
        return None if len(calls) % 41 == 0 else real(store, owner, key)

    monkeypatch.setattr(FeatureStore, "get", forgetful)
    found = run({**flat, "exchange.connector-at": "server"})
    assert_same(adapters(found.path), adapters(plain.path))
    for record, other in zip(found.rounds, plain.rounds, strict=True):
        assert record["test_loss_per_client"] == other["test_loss_per_client"]
        assert not record["failures"]["train"] and not record["failures"]["evaluate"]
    assert found.rounds[0]["step_bytes_up"] < plain.rounds[0]["step_bytes_up"]


def test_a_client_with_another_connector_than_the_hosts_does_not_train(
    run_config: Config, able: FrozenLLM
) -> None:
    """Another version of the checkpoint, or another dtype."""
    flat = run_config()
    config = RunConfig.parse({**flat, "exchange.connector-at": "server"})
    info = able.describe()
    half = mock.Mock(connector_digest=info.connector)
    client = mock.Mock(spec=Client, config=config, half=half, shard=mock.Mock())
    Client.keep_within(client, info)
    for other in ("", "another"):
        with pytest.raises(ConfigError, match=r"exchange\.connector-at.*edge\.dtype"):
            Client.keep_within(client, replace(info, connector=other))
