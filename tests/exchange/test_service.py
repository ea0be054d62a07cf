"""The LLM service over gRPC: what it survives and what it counts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fednano_flwr.exchange.errors import HostRefusedError, HostUnreachableError
from fednano_flwr.exchange.protocol import Gradient
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from tests.batches import answered_at_the_end as batch
from tests.exchange.conftest import same_bits
from tests.exchange.stand_in import StandIn


@pytest.mark.parametrize("protection", [{}, {"tokens": Tokens(1)}])
def test_a_service_that_others_could_reach_needs_tokens_and_tls(
    service: StandIn, protection: dict[str, Any]
) -> None:
    for bind in ("0.0.0.0", "::", "192.0.2.7"):
        with pytest.raises(ValueError, match=r"needs tokens .* and identity"):
            with serve(service, bind, **protection):
                pass


def test_a_taken_port_is_an_error_that_names_the_keys(service: StandIn) -> None:
    with serve(service) as address:
        with pytest.raises(OSError, match=r"llm\.bind, llm\.port"):
            with serve(service, port=int(address.rpartition(":")[2])):
                pass


@pytest.mark.parametrize("wrong", ["fingerprint", "hidden size"])
def test_halves_of_different_models_are_refused_with_both_named(
    remote: RemoteLLM, host: FrozenLLM, wrong: str
) -> None:
    info = host.describe()
    assert remote.describe() == info
    assert remote.register("mine", info.fingerprint, info.hidden_size) == info
    fingerprint = "0123" if wrong == "fingerprint" else info.fingerprint
    size = 7 if wrong == "hidden size" else info.hidden_size
    with pytest.raises(HostRefusedError) as refusal:
        remote.register("mine", fingerprint, size)
    for part in (info.model, info.fingerprint, "mine", fingerprint, str(size)):
        assert part in str(refusal.value)


def test_requests_of_many_clients_at_once_are_not_mixed_up(host: FrozenLLM) -> None:
    expected = {seed: host.step(*batch(seed)) for seed in range(12)}

    def ask(seed: int) -> bool:
        with RemoteLLM(address) as remote:
            return all(same_bits(remote.step(*batch(seed)), expected[seed]) for _ in range(3))

    with serve(host) as address, ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(12)))


def test_a_step_survives_a_host_that_goes_away_and_comes_back(host: FrozenLLM) -> None:
    with serve(host) as address:
        port = int(address.rpartition(":")[2])
        remote = RemoteLLM(address, retry_seconds=20)
        before = remote.step(*batch(3))
    answers: list[tuple[float, Gradient]] = []
    asking = threading.Thread(target=lambda: answers.append(remote.step(*batch(3))))
    asking.start()
    asking.join(timeout=0.5)
    assert asking.is_alive()  # nobody is there to answer
    with serve(host, port=port):
        asking.join(timeout=15)
    remote.close()
    assert same_bits(answers[0], before)
    assert remote.traffic.retries >= 1 and remote.traffic.calls == 3  # describe and two steps


def test_a_host_that_stays_away_is_an_error_with_its_address() -> None:
    with RemoteLLM("127.0.0.1:9", retry_seconds=0.3) as remote:
        with pytest.raises(HostUnreachableError, match=r"127\.0\.0\.1:9 did not answer"):
            remote.describe()


def test_a_host_that_hangs_is_an_error_after_the_timeout(service: StandIn) -> None:
    service.released.clear()
    with serve(service) as address, RemoteLLM(address, timeout=0.3, retry_seconds=0.5) as remote:
        try:
            with pytest.raises(HostUnreachableError, match="DEADLINE_EXCEEDED"):
                remote.step(*batch(0))
        finally:
            service.released.set()


def test_a_step_that_timed_out_is_repeated_though_the_timeout_is_longer_than_the_retries(
    service: StandIn,
) -> None:
    service.released.clear()
    with serve(service) as address, RemoteLLM(address, timeout=0.6, retry_seconds=0.05) as remote:
        threading.Timer(0.7, service.released.set).start()
        assert remote.step(*batch(0))[0] == 0.5
    assert remote.traffic.retries == 1


def test_traffic_counts_the_bytes_of_requests_and_replies(remote: RemoteLLM) -> None:
    remote.describe()
    before = (remote.traffic.bytes_up, remote.traffic.bytes_down)
    remote.step(*batch(0))
    up, down = remote.traffic.bytes_up - before[0], remote.traffic.bytes_down - before[1]
    payload = 14 * 48 * 4
    assert payload < up < payload + 100
    assert payload < down < payload + 60
