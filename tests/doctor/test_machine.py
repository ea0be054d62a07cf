"""What is installed, and what a run takes of a machine against what there is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from fednano_flwr.config import RunConfig
from fednano_flwr.config import machine as this_machine
from fednano_flwr.config.machine import Memory, device_memory, main_memory
from fednano_flwr.doctor import machine
from fednano_flwr.doctor.machine import client_bytes, server_bytes
from fednano_flwr.models.llm_half import LLMHalf
from fednano_flwr.models.size import Parts, count, read_size_config
from tests.doctor.found import only, well

Configured = Callable[..., RunConfig]
Give = Callable[[int, int], None]


def test_packages_and_python_have_to_be_in_their_ranges() -> None:
    found = only(machine.check_packages(["torch<1", "pillow>=1"]), "problem")
    assert f"torch {metadata.version('torch')}" in found.what and "<1" in found.what
    assert found.do == "pip install 'torch<1'"
    found = only(machine.check_packages(["no-such-package-of-anyone>=2"]), "problem")
    assert "not installed" in found.what and "no-such-package-of-anyone>=2" in found.do
    others = ["pillow>=1", 'torch<1; extra == "dev"', 'torch<1; sys_platform == "none"']
    assert well(machine.check_packages(others)) and well(machine.check_installed())
    assert ">=3.11" in only(machine.check_python(">=3.11", "3.10.4"), "problem").what


def test_flowers_helper_has_to_be_on_the_path(tmp_path: Path) -> None:
    found = only(machine.check_programs(str(tmp_path)), "warning")
    assert "flower-superexec" in found.what and str(Path(sys.executable).parent) in found.do
    (tmp_path / "flower-superexec").touch(mode=0o755)
    assert well(machine.check_programs(str(tmp_path)))


def test_a_clock_of_long_ago_is_a_problem() -> None:
    assert "1970-01-02" in only(machine.check_clock(86_400), "problem").what
    assert well(machine.check_clock(time.time()))


def test_threads_and_clients_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = only(machine.check_threads("llm.threads", 8, 4), "warning")
    assert "llm.threads = 8" in found.what and "4 or less" in found.do
    assert well(machine.check_threads("llm.threads", 4, 4))
    monkeypatch.setattr(machine, "open_files", lambda: 1024)
    found = only(machine.check_open_files(1024), "warning")
    assert "llm.max-clients = 1024" in found.what and "ulimit -n 2304" in found.do
    assert well(machine.check_open_files(384))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Parts:
    return count(read_size_config(str(tiny_model)).config)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Gives the machine another memory, total and free."""

    def give(total: int, free: int) -> None:
        monkeypatch.setattr(this_machine, "main_memory", lambda: Memory(total, free))

    return give


def test_the_servers_bytes_are_those_that_are_loaded(
    config: Configured, tiny: Parts, llm_half: LLMHalf
) -> None:
    loaded = sum(p.numel() * p.element_size() for p in llm_half.parameters())
    assert server_bytes(config(), tiny) == loaded
    assert server_bytes(config(llm__dtype="bfloat16", llm__replicas=3), tiny) == 3 * loaded / 2
    four_bits = server_bytes(config(llm__quantization="4bit", llm__dtype="bfloat16"), tiny)
    assert loaded / 8 < four_bits < loaded / 2


def test_a_model_that_does_not_fit_is_a_problem_and_a_full_machine_a_warning(
    config: Configured, tiny: Parts, memory: Give
) -> None:
    check = machine.check_server_memory
    weights, features = server_bytes(config(), tiny), config().llm.feature_memory_mb * 2**20
    memory(weights - 1, weights - 1)
    assert "llm.device = 'cpu'" in only(check(config()), "problem").what
    memory(10 * weights, weights - 1)
    assert "end other" in only(check(config()), "warning").do
    memory(2 * features, weights + features - 1)
    assert "llm.feature-memory-mb" in only(check(config()), "warning").do
    memory(2 * features, weights + features)
    assert well(check(config()))


def test_a_client_needs_its_rows_and_its_training(
    config: Configured, tiny: Parts, memory: Give
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
    found = only(machine.check_client_memory(config(), "edge.device", "cpu", "", None), "problem")
    assert "edge.device = 'cpu'" in found.what


def test_memory_is_the_containers_and_none_of_a_device_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "CGROUP", tmp_path)
    whole = psutil.virtual_memory().total
    assert main_memory().total == whole
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert device_memory("cpu") == Memory(1000, 600)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory().total == whole
    assert device_memory("cuda:99") is None and device_memory("toaster") is None
