"""One item is prepared in the background, no more, and no thread is left behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch

from fednano_flwr.edge.prefetch import prefetch

LONGEST = 30.0
"""Seconds until something that must happen counts as not happening; never waited for in full."""


def background() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not background()


def third_fails(item: int) -> int:
    if item == 3:
        raise OSError(f"item {item}")
    return item


@pytest.mark.parametrize("count", [0, 1, 5])
def test_everything_is_prepared_once_in_order_in_another_thread(count: int) -> None:
    prepared: list[tuple[int, bool]] = []

    def prepare(item: int) -> int:
        prepared.append((item, threading.current_thread() is threading.main_thread()))
        return 10 * item

    assert list(prefetch(iter(range(count)), prepare)) == [0, 10, 20, 30, 40][:count]
    assert prepared == [(item, False) for item in range(count)]


def test_the_next_item_and_no_later_one_is_prepared_while_the_caller_works() -> None:
    started = [threading.Event() for _ in range(6)]

    def prepare(item: int) -> int:
        started[item].set()
        return item

    for item in prefetch(range(6), prepare):
        if item < 5:
            assert started[item + 1].wait(LONGEST)
        assert not any(event.is_set() for event in started[item + 2 :])


def test_what_prepare_raises_comes_at_its_own_item() -> None:
    seen = []
    with pytest.raises(OSError, match="item 3"):
        for item in prefetch(range(6), third_fails):
            seen.append(item)
    assert seen == [0, 1, 2]


def test_a_caller_that_stops_before_a_bad_item_never_hears_of_it() -> None:
    for item in prefetch(range(6), third_fails):
        if item == 2:
            break
    assert item == 2 and not background()


def test_an_error_of_the_caller_ends_the_thread_before_it_is_handled() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        for item in prefetch(range(6), third_fails):
            1 // (1 - item)
    assert caught.tb is not None and not background()


def test_what_the_caller_dropped_is_not_held_and_closing_ends_the_thread() -> None:
    class Batch:
        pass

    items = prefetch(range(3), lambda item: Batch())
    first = next(items)
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None and background()
    items.close()  # type: ignore[attr-defined]
    assert not background()


def test_the_background_thread_uses_as_many_of_pytorchs_threads_as_the_callers() -> None:
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert list(prefetch([0], lambda item: torch.get_num_threads())) == [count]
    finally:
        torch.set_num_threads(before)
