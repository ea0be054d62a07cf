"""What a run takes of a machine, against what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.doctor import machine
from fednano_flwr.doctor.machine import (
    Memory,
    check_client_memory,
    check_open_files,
    check_server_memory,
    check_threads,
    client_bytes,
    device_memory,
    main_memory,
    server_bytes,
)
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.models.size import Parts, count, read_size_config
from tests.doctor.found import only, well

Configured = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Parts:
    return count(read_size_config(str(tiny_model)).config)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Gives the machine another memory, total and free."""

    def give(total: int, free: int) -> None:
        monkeypatch.setattr(machine, "main_memory", lambda: Memory(total, free))

    return give


def test_the_servers_bytes_are_those_that_are_loaded(
    config: Configured, tiny: Parts, llm_half: LLMHalf
) -> None:
    loaded = sum(p.numel() * p.element_size() for p in llm_half.parameters())
    assert server_bytes(config(), tiny) == loaded
    assert server_bytes(config(llm__dtype="bfloat16"), tiny) == loaded / 2
    assert server_bytes(config(llm__replicas=3), tiny) == 3 * loaded
    four_bits = server_bytes(config(llm__quantization="4bit", llm__dtype="bfloat16"), tiny)
    assert loaded / 8 < four_bits < loaded / 2


def test_a_model_that_does_not_fit_is_a_problem_and_a_full_machine_a_warning(
    config: Configured, tiny: Parts, memory: Callable[[int, int], None]
) -> None:
    weights, features = server_bytes(config(), tiny), config().llm.feature_memory_mb * 2**20
    memory(weights - 1, weights - 1)
    assert "llm.device = 'cpu'" in only(check_server_memory(config(), tiny), "problem").what
    memory(10 * weights, weights - 1)
    assert "end other" in only(check_server_memory(config(), tiny), "warning").do
    memory(2 * features, weights + features - 1)
    assert "llm.feature-memory-mb" in only(check_server_memory(config(), tiny), "warning").do
    memory(2 * features, weights + features)
    assert well(check_server_memory(config(), tiny))


def test_a_client_needs_its_rows_and_its_training(
    config: Configured, tiny: Parts, memory: Callable[[int, int], None]
) -> None:
    whole = client_bytes(config(), tiny, None, None)
    adapters = 2 * 2 * 4 * tiny.hidden_size * 4  # two sites, A and B, rank 4, float32
    frozen = 4 * (tiny.encoder_used + tiny.connector + tiny.vocabulary * tiny.hidden_size)
    assert whole == frozen + 4 * adapters  # themselves, gradients, AdamW's two moments
    assert client_bytes(config(adapter__sites="text"), tiny, None, None) == frozen + 2 * adapters
    assert client_bytes(config(), tiny, None, 2) == frozen + 2 * adapters
    rows = 10 * (tiny.hidden_size * 4 + 8)  # their numbers, and their ids
    less = tiny.vocabulary * tiny.hidden_size * 4 - rows
    assert client_bytes(config(), tiny, 10, None) == whole - less
    memory(whole - 1, whole - 1)
    found = only(check_client_memory(config(), tiny, "edge.device", "cpu", None, None), "problem")
    assert "edge.device = 'cpu'" in found.what


def test_a_container_has_no_more_memory_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    whole = main_memory()
    assert whole.total == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert main_memory() == Memory(1000, 600)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory().total == whole.total


def test_a_device_that_is_not_here_tells_no_memory() -> None:
    assert device_memory("cuda:99") is None and device_memory("toaster") is None
    assert device_memory("cpu") is not None


def test_more_threads_than_processors_is_a_warning() -> None:
    found = only(check_threads("llm.threads", 8, 4), "warning")
    assert "llm.threads = 8" in found.what and "4 or less" in found.do
    assert well(check_threads("llm.threads", 4, 4)) and well(check_threads("llm.threads", 0, 4))


def test_clients_take_open_files() -> None:
    found = only(check_open_files(1024, 1024), "warning")
    assert "llm.max-clients = 1024" in found.what and "ulimit -n 1280" in found.do
    assert well(check_open_files(1024, 1280))
