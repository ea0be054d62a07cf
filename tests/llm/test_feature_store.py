"""Frozen features at the host: bounded, and gone at any time without harm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fednano_flwr.llm import feature_store
from fednano_flwr.llm.feature_store import FeatureStore

ONE = 4 * 8 * 4  # bytes of a (4, 8) float32 tensor


def tensor(value: int) -> torch.Tensor:
    return torch.full((4, 8), float(value))


def held(store: FeatureStore, owner: bytes = b"a", count: int = 10) -> list[int]:
    found = [store.get(owner, bytes([i])) for i in range(count)]
    for i, features in enumerate(found):
        assert features is None or torch.equal(features, tensor(i))
    return [i for i, features in enumerate(found) if features is not None]


def test_the_least_recently_used_goes_first_and_the_bound_holds() -> None:
    store = FeatureStore(3 * ONE)
    for i in range(3):
        store.put(b"a", bytes([i]), tensor(i))
    assert store.get(b"a", bytes([0])) is not None  # used again: 1 is the oldest now
    store.put(b"a", bytes([3]), tensor(3))
    assert held(store) == [0, 2, 3] and store.bytes_in_memory == 3 * ONE


def test_what_leaves_memory_lies_on_disk_until_that_is_full_too() -> None:
    store = FeatureStore(2 * ONE, 3 * ONE)
    for i in range(7):
        store.put(b"a", bytes([i]), tensor(i))
    assert store.bytes_in_memory == 2 * ONE and store.bytes_on_disk == 3 * ONE
    assert held(store) == [2, 3, 4, 5, 6]
    assert store.bytes_in_memory == 2 * ONE and store.bytes_on_disk <= 3 * ONE
    store.close()
    assert held(store) == [] and store.bytes_in_memory == store.bytes_on_disk == 0


def test_its_folder_is_gone_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = FeatureStore(0, 5 * ONE)
    store.put(b"a", b"k", tensor(1))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_cannot_name_anothers_entries() -> None:
    store = FeatureStore(10 * ONE)
    store.put(b"a", bytes([1]), tensor(1))
    assert store.get(b"b", bytes([1])) is None and held(store, b"a") == [1]


def test_a_name_put_again_replaces_what_it_was() -> None:
    store = FeatureStore(10 * ONE)
    store.put(b"a", b"k", tensor(1))
    store.put(b"a", b"k", tensor(2))
    found = store.get(b"a", b"k")
    assert found is not None and torch.equal(found, tensor(2)) and store.bytes_in_memory == ONE


def test_what_is_larger_than_both_is_not_kept() -> None:
    store = FeatureStore(ONE - 1, ONE - 1)
    store.put(b"a", bytes([0]), tensor(0))
    assert held(store) == [] and store.bytes_in_memory == store.bytes_on_disk == 0


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_file_that_was_tampered_with_is_as_good_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = FeatureStore(0, 5 * ONE)
    store.put(b"a", bytes([0]), tensor(0))
    (file,) = tmp_path.rglob("*.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage == "cut short":
        file.write_bytes(content[:-3])
    assert store.get(b"a", bytes([0])) is None and store.bytes_on_disk == 0
    store.close()


@pytest.mark.parametrize("way", ["save_file", "tempfile.mkdtemp"])
def test_a_full_disk_costs_the_entry_and_is_said_once(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"fednano_flwr.llm.feature_store.{way}", full)
    store = FeatureStore(ONE, 5 * ONE)
    for i in range(3):
        store.put(b"a", bytes([i]), tensor(i))
    assert held(store) == [2] and store.bytes_on_disk == 0
    assert [r.getMessage().count("No space left") for r in caplog.records] == [1]
    store.close()


class Elsewhere(Tensor):
    """Says that it lies on another device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")


def test_features_from_disk_come_back_to_the_device_that_they_were_on() -> None:
    store = FeatureStore(100, 10_000)
    store.put(b"a", b"1", torch.ones(5, 4).as_subclass(Elsewhere))
    store.put(b"a", b"2", torch.ones(5, 4))
    assert store.bytes_on_disk == 80
    found = store.get(b"a", b"1")
    assert found is not None and found.device.type == "meta"
    store.close()


def held_up(name: str, patch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let one of the store's ways to the disk wait; its beginning, and what lets it go on."""
    begun, go_on = threading.Event(), threading.Event()
    original = getattr(feature_store, name)

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        return original(*arguments)

    patch.setattr(feature_store, name, slow)
    return begun, go_on


def blocks(store: FeatureStore, slow: Callable[[], object], events: Any) -> bool:
    """Whether a feature in memory has to be waited for while `slow` is at the disk."""
    begun, go_on = events
    with ThreadPoolExecutor(2) as pool:
        at_disk = pool.submit(slow)
        assert begun.wait(10)
        meanwhile = pool.submit(store.get, b"a", b"2")
        try:
            return meanwhile.result(0.5) is None
        except TimeoutError:
            return True
        finally:
            go_on.set()
            at_disk.result(10)


def test_a_slow_disk_read_lets_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(100, 10_000)
    for key in (b"1", b"2"):
        store.put(b"a", key, torch.ones(5, 4))
    events = held_up("load_file", monkeypatch)
    assert not blocks(store, lambda: store.get(b"a", b"1"), events)
    assert store.get(b"a", b"1") is not None and store.get(b"a", b"2") is not None
    store.close()


def test_a_slow_disk_write_lets_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(200, 10_000)
    for key in (b"1", b"2"):
        store.put(b"a", key, torch.ones(5, 4))
    events = held_up("save_file", monkeypatch)
    assert not blocks(store, lambda: store.put(b"a", b"3", torch.ones(5, 4)), events)
    assert all(store.get(b"a", key) is not None for key in (b"1", b"2", b"3"))
    store.close()


def test_what_is_being_written_can_be_had_and_leaves_no_file_when_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = FeatureStore(ONE, 10_000)
    store.put(b"a", bytes([0]), tensor(0))
    begun, go_on = held_up("save_file", monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.put, b"a", bytes([1]), tensor(1))
        assert begun.wait(10)
        assert held(store) == [0, 1]
        store.put(b"a", bytes([1]), tensor(1))
        store._forget((b"a", bytes([0])))
        go_on.set()
        writing.result(10)
    assert held(store) == [1] and store.bytes_on_disk == 0
    assert not list(tmp_path.rglob("*.safetensors"))
    store.close()


def test_many_threads_at_once_get_what_they_put() -> None:
    store = FeatureStore(6 * ONE, 6 * ONE)
    wrong: list[int] = []

    def work(owner: int) -> None:
        for turn in range(40):
            key = bytes([turn % 5])
            store.put(bytes([owner]), key, tensor(owner))
            found = store.get(bytes([owner]), key)
            if found is not None and not torch.equal(found, tensor(owner)):
                wrong.append(owner)

    threads = [threading.Thread(target=work, args=(owner,)) for owner in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.bytes_in_memory <= 6 * ONE and store.bytes_on_disk <= 6 * ONE
    store.close()


def test_one_owner_cannot_push_out_anothers_beyond_its_even_share() -> None:
    store = FeatureStore(4 * ONE, 4 * ONE)
    for i in range(3):
        store.put(b"a", bytes([i]), tensor(i))
    for i in range(100):
        store.put(b"greedy", bytes([i]), tensor(i))
    assert store.bytes_in_memory == 4 * ONE and store.bytes_on_disk == 4 * ONE
    assert held(store, b"a") == [0, 1, 2]
    store.close()


def test_an_owner_can_have_what_one_request_needs_at_the_others_cost() -> None:
    store = FeatureStore(4 * ONE, least=3 * ONE)
    for i in range(4):
        store.put(b"a", bytes([i]), tensor(i))
    for i in range(10):
        store.put(b"b", bytes([i]), tensor(i))
    assert held(store, b"b") == [7, 8, 9] and held(store, b"a") == [3]


def test_an_owner_with_too_many_entries_loses_its_own_oldest() -> None:
    store = FeatureStore(4 * ONE, 100 * ONE, most=6)
    store.put(b"b", bytes([0]), tensor(0))
    for i in range(10):
        store.put(b"a", bytes([i]), tensor(i))
        assert store.count(b"a") <= 6
    assert held(store, b"a") == [4, 5, 6, 7, 8, 9] and held(store, b"b") == [0]
    store.close()
