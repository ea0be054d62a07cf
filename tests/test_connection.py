"""The connection between a client and the LLM service is cut in the middle of training, and back.

A real gRPC host behind a TCP proxy; what comes out is what an undisturbed run gives, bit for bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.config import RunConfig
from fednano_flwr.runs.folder import RunFolder
from tests.local_grid import LocalGrid
from tests.proxy import Proxy, free_port, proxy

Config = Callable[..., dict[str, Any]]
STEPS_BYTES = 20_000


def run(flat: dict[str, Any]) -> RunFolder:
    return server_app.federate(LocalGrid(client_app.app, flat, 2), 1, RunConfig.parse(flat))


def adapters(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")


@pytest.fixture
def settings(run_config: Config) -> Config:
    return lambda **keys: run_config(num_server_rounds=1, batch_size=2, local_epochs=1, **keys)


def disturb(
    monkeypatch: pytest.MonkeyPatch, between: Proxy, cut: Callable[[Proxy], None], seconds: float
) -> None:
    """Cut the connection for some seconds in client 1's training, which ends not before."""
    healthy = client_app.Client.train

    def restore(after: threading.Event) -> None:
        assert after.wait(60)
        time.sleep(seconds)
        between.restore()

    def train(self: client_app.Client, *args: Any) -> Any:
        if self.partition != 1:
            return healthy(self, *args)
        cut_off = between.after(STEPS_BYTES, lambda: cut(between))
        thread = threading.Thread(target=restore, args=(cut_off,))
        thread.start()
        try:
            return healthy(self, *args)
        finally:
            thread.join(90)
            assert not thread.is_alive()

    monkeypatch.setattr(client_app.Client, "train", train)


@pytest.mark.parametrize(
    ("cut", "seconds"),
    [
        pytest.param(Proxy.refuse, 1.0, marks=pytest.mark.slow),
        pytest.param(Proxy.hang, 2.0, marks=pytest.mark.slow),
        (Proxy.lose, 0.0),
    ],
    ids=["refused", "silent", "lost for ever"],
)
def test_a_connection_that_is_cut_in_training_and_back_changes_no_bit(
    settings: Config,
    monkeypatch: pytest.MonkeyPatch,
    cut: Callable[[Proxy], None],
    seconds: float,
) -> None:
    expected = adapters(run(settings(run__name="calm")))
    port = free_port()
    flat = settings(run__name="cut", llm__port=port, exchange__timeout=0.5)
    with proxy(f"127.0.0.1:{port}") as between:
        flat["llm.address"] = between.address
        disturb(monkeypatch, between, cut, seconds)
        shaken = run(flat)
    assert shaken.rounds[1]["step_retries"] > 0
    assert not shaken.rounds[1]["failures"]["train"]
    assert all(torch.equal(value, expected[key]) for key, value in adapters(shaken).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "cut",
    [pytest.param(Proxy.refuse, marks=pytest.mark.slow), Proxy.hang],
    ids=["refused", "silent"],
)
def test_a_connection_that_stays_away_too_long_fails_its_client_with_the_reason(
    settings: Config, monkeypatch: pytest.MonkeyPatch, cut: Callable[[Proxy], None]
) -> None:
    port = free_port()
    flat = settings(llm__port=port, exchange__timeout=0.3)
    monkeypatch.setattr("fednano_flwr.exchange.wire.connection.RETRY_SECONDS", 1.0)
    with proxy(f"127.0.0.1:{port}") as between:
        flat["llm.address"] = between.address
        disturb(monkeypatch, between, cut, 3.0)
        shaken = run(flat)
    (why,) = shaken.rounds[1]["failures"]["train"].values()
    assert "HostUnreachableError" in why and "did not answer for" in why
    assert sorted(shaken.rounds[1]["train_loss_per_client"]) == ["0"]
    assert sorted(shaken.rounds[1]["accuracy_per_client"]) == ["0", "1"]
