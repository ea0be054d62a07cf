"""The LLM service: what it refuses, what it survives, what it counts."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.exchange.protocol import (
    PROTOCOL_VERSION,
    HostRefusedError,
    HostUnreachableError,
    LLMInfo,
)
from fednano_flwr.exchange.wire import codec
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.llm_half import LLMHalf
from tests.batches import answered_at_the_end as batch


@pytest.fixture
def host(llm_half: LLMHalf) -> FrozenLLM:
    return FrozenLLM(llm_half, max_tokens=100)


@pytest.fixture
def remote(host: FrozenLLM) -> Iterator[RemoteLLM]:
    with serve(host) as address, RemoteLLM(address, retry_seconds=0.5) as remote:
        yield remote


@pytest.mark.parametrize("protection", [{}, {"tokens": Tokens(1)}])
def test_a_service_that_others_could_reach_needs_tokens_and_tls(
    host: Any, protection: dict[str, Any]
) -> None:
    for bind in ("0.0.0.0", "::", "192.0.2.7"):
        with pytest.raises(ValueError, match=r"needs tokens .* and identity"):
            with serve(host, bind, **protection):
                pass


def test_describe_names_the_model(remote: RemoteLLM, host: FrozenLLM) -> None:
    assert remote.describe() == host.describe()


@pytest.mark.parametrize("wrong", ["fingerprint", "hidden size"])
def test_halves_of_different_models_are_refused_with_both_named(
    remote: RemoteLLM, host: FrozenLLM, wrong: str
) -> None:
    info = host.describe()
    assert remote.register("mine", info.fingerprint, info.hidden_size) == info
    fingerprint = "0123" if wrong == "fingerprint" else info.fingerprint
    size = 7 if wrong == "hidden size" else info.hidden_size
    with pytest.raises(HostRefusedError) as refusal:
        remote.register("mine", fingerprint, size)
    for part in (info.model, info.fingerprint, "mine", fingerprint, str(size)):
        assert part in str(refusal.value)


def test_another_protocol_version_is_refused(
    remote: RemoteLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Caller, "header", lambda self: pb.Header(protocol=PROTOCOL_VERSION + 1))
    with pytest.raises(HostRefusedError, match="same version"):
        remote.describe()


def test_a_batch_over_the_limit_is_refused_with_the_key_to_change(remote: RemoteLLM) -> None:
    with pytest.raises(HostRefusedError, match=r"101 tokens.*llm\.max-tokens.*batch-size"):
        remote.step(*batch(0, (101,)))


def refused(remote: RemoteLLM, request: pb.StepRequest) -> str:
    with pytest.raises(HostRefusedError) as refusal:
        remote._answer(pb.Call(step=request))
    return str(refusal.value)


def test_malformed_requests_are_refused_and_the_next_one_is_served(remote: RemoteLLM) -> None:
    header = pb.Header(protocol=PROTOCOL_VERSION)
    good = codec.encode(torch.zeros(4, 48), "float32")

    def request(labels: tuple[int, ...] = (1,), **changes: Any) -> pb.StepRequest:
        inputs = pb.Inputs(**{"embeddings": good, "lengths": [4], **changes})
        return pb.StepRequest(
            header=header, inputs=inputs, label_positions=[3], labels=labels, dtype="float32"
        )

    narrow = codec.encode(torch.zeros(4, 3), "float32")
    truncated = pb.Tensor(dtype="float32", shape=[4, 48], data=good.data[:-1])
    unknown = pb.Tensor(dtype="float8", shape=[4, 48], data=good.data)
    assert "(4, 48)" in refused(remote, request(embeddings=narrow))
    assert "(3, 48)" in refused(remote, request(lengths=[3]))
    assert "1 label positions and 0" in refused(remote, request(labels=()))
    assert "label 64 is out of range" in refused(remote, request(labels=(64,)))
    assert "767 bytes do not hold" in refused(remote, request(embeddings=truncated))
    assert "float8" in refused(remote, request(embeddings=unknown))
    assert "5 position ids" in refused(remote, request(position_ids=[0] * 5))
    assert "3 token types" in refused(remote, request(token_type_ids=[0] * 3))
    assert remote.step(*batch(1))[0] > 0


def test_requests_of_many_clients_at_once_are_not_mixed_up(host: FrozenLLM) -> None:
    expected = {seed: host.step(*batch(seed)) for seed in range(12)}

    def ask(seed: int) -> bool:
        with RemoteLLM(address) as remote:
            answers = [remote.step(*batch(seed)) for _ in range(3)]
        loss, (gradient,) = expected[seed]
        return all(
            abs(a[0] - loss) < 1e-6 * abs(loss) and torch.equal(*a[1], gradient) for a in answers
        )

    with serve(host) as address, ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(12)))


def test_a_step_survives_a_host_that_goes_away_and_comes_back(host: FrozenLLM) -> None:
    with serve(host) as address:
        port = int(address.rpartition(":")[2])
        remote = RemoteLLM(address, retry_seconds=20)
        before = remote.step(*batch(3))
    answers: list[tuple[float, Tensor]] = []
    asking = threading.Thread(target=lambda: answers.append(remote.step(*batch(3))))
    asking.start()
    asking.join(timeout=0.5)
    assert asking.is_alive()  # nobody is there to answer
    with serve(host, port=port):
        asking.join(timeout=15)
    remote.close()
    assert answers[0][0] == before[0] and torch.equal(*answers[0][1], *before[1])
    assert remote.traffic.retries >= 1 and remote.traffic.calls == 3  # describe and two steps


def test_a_host_that_stays_away_is_an_error_with_its_address() -> None:
    with RemoteLLM("127.0.0.1:9", retry_seconds=0.3) as remote:
        with pytest.raises(HostUnreachableError, match=r"127\.0\.0\.1:9 did not answer"):
            remote.describe()


class SlowLLM:
    """A host that never finishes in time."""

    def __init__(self, info: LLMInfo) -> None:
        self._info = info
        self.release = threading.Event()

    def describe(self) -> LLMInfo:
        return self._info

    def step(self, *args: object) -> tuple[float, Tensor]:
        self.release.wait(10)
        return 0.0, torch.zeros(14, 48)

    def score(self, *args: object) -> Tensor:
        raise NotImplementedError


def test_a_host_that_hangs_is_an_error_after_the_timeout(host: FrozenLLM) -> None:
    slow = SlowLLM(host.describe())
    with serve(slow) as address, RemoteLLM(address, timeout=0.3, retry_seconds=0.5) as remote:
        try:
            with pytest.raises(HostUnreachableError, match="DEADLINE_EXCEEDED"):
                remote.step(*batch(0))
        finally:
            slow.release.set()


def test_a_step_that_timed_out_is_repeated_though_the_timeout_is_longer_than_the_retries(
    host: FrozenLLM,
) -> None:
    class HangsOnce(SlowLLM):
        def step(self, *args: Any) -> tuple[float, Any]:
            if not self.calls:
                self.calls += 1
                return super().step(*args)
            return host.step(*args)

        calls = 0

    slow = HangsOnce(host.describe())
    with serve(slow) as address, RemoteLLM(address, timeout=0.6, retry_seconds=0.05) as remote:  # type: ignore[arg-type]
        try:
            assert remote.step(*batch(0))[0] == pytest.approx(host.step(*batch(0))[0])
        finally:
            slow.release.set()
    assert remote.traffic.retries == 1


def test_traffic_counts_the_bytes_of_requests_and_replies(remote: RemoteLLM) -> None:
    remote.describe()
    before = (remote.traffic.bytes_up, remote.traffic.bytes_down)
    remote.step(*batch(0))
    up, down = remote.traffic.bytes_up - before[0], remote.traffic.bytes_down - before[1]
    payload = 14 * 48 * 4
    assert payload < up < payload + 100
    assert payload < down < payload + 60


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_survive_the_wire(dtype: str) -> None:
    tensor = torch.randn(3, 5)
    back = codec.decode(codec.encode(tensor, dtype))
    assert torch.equal(back, tensor.to(back.dtype)) and str(back.dtype) == f"torch.{dtype}"


def test_a_taken_port_is_an_error_that_names_the_keys(host: FrozenLLM) -> None:
    with serve(host) as address:
        with pytest.raises(OSError, match=r"llm\.bind, llm\.port"):
            with serve(host, port=int(address.rpartition(":")[2])):
                pass
