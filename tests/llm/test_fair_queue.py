"""Whose samples go next: nobody starves, and passes hold little padding."""

from __future__ import annotations

from typing import Any

import torch

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.protocol import IGNORE, STILL_WANTED, Layout
from fednano_flwr.llm.fair_queue import FairQueue
from fednano_flwr.llm.jobs import Job, ScoreJob, StepJob, Task


def step(owner: str, *lengths: int, axes: int = 0) -> StepJob:
    labels = torch.full((sum(lengths),), IGNORE)
    labels[-1] = 0
    positions = torch.zeros(axes, sum(lengths), dtype=torch.int64) if axes else None
    inputs = EmbeddingInputs(torch.zeros(sum(lengths), 2), Layout(lengths, positions))
    return StepJob(inputs, labels, owner.encode())


def passes(queue: FairQueue) -> list[list[tuple[str, int]]]:
    """Owner and length of each sample of each pass, until nothing waits."""
    found = []
    while (work := queue.next()) is not None:
        assert isinstance(work, list)
        found.append([(sample.job.owner.decode(), sample.length) for sample in work])
    return found


def fill(queue: FairQueue, *work: Job[Any]) -> FairQueue:
    for request in work:
        queue.add(request)
    return queue


def test_without_batching_a_pass_is_one_whole_request_in_its_own_order() -> None:
    queue = fill(FairQueue(), step("a", 3, 9, 5), step("b", 4))
    assert passes(queue) == [[("a", 3), ("a", 9), ("a", 5)], [("b", 4)]]


def test_a_client_with_large_requests_waits_for_those_with_small_ones() -> None:
    queue = fill(FairQueue(), *[step("large", 100) for _ in range(5)])
    queue.next()
    fill(queue, *[step("small", 10) for _ in range(5)])
    owners = [owner for batch in passes(queue) for owner, _ in batch]
    assert owners == ["small"] * 5 + ["large"] * 4


def test_a_client_that_asks_for_no_tokens_does_not_hold_up_the_others() -> None:
    """One that begins session after session, say."""
    queue = fill(FairQueue(), *[step("honest", 100) for _ in range(4)])
    begun = 0
    while queue.waiting_of(b"honest"):
        queue.add(Task(lambda: 1, 0, b"greedy"))
        begun += isinstance(queue.next(), Task)
        assert begun < 10


def test_a_client_that_was_away_has_saved_up_no_turns() -> None:
    queue = fill(FairQueue(), *[step("busy", 10) for _ in range(20)])
    for _ in range(10):
        queue.next()
    fill(queue, *[step("new", 10) for _ in range(10)])
    owners = [owner for batch in passes(queue) for owner, _ in batch]
    assert abs(owners[:10].count("new") - 5) <= 1


def test_a_large_request_is_cut_and_shares_its_passes() -> None:
    queue = fill(FairQueue(100), step("large", *[20] * 20), step("small", 20), step("other", 20))
    first, *later = passes(queue)
    assert sorted(owner for owner, _ in first) == ["large"] * 3 + ["other", "small"]
    assert all(len(batch) == 5 for batch in later[:-1])
    assert sum(len(batch) for batch in [first, *later]) == 22


def test_a_pass_keeps_to_its_tokens_and_holds_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    work = [
        step(f"{i}", *torch.randint(5, 90, (6,), generator=generator).tolist()) for i in range(12)
    ]
    found = passes(fill(FairQueue(256), *work))
    assert sorted(length for batch in found for _, length in batch) == sorted(
        length for job in work for length in job.inputs.layout.lengths
    )
    for batch in found:
        lengths = [length for _, length in batch]
        padded = len(lengths) * max(lengths)
        assert padded <= 256 and padded - sum(lengths) <= padded / 4
    assert sum(len(batch) for batch in found) / len(found) > 3  # they are shared


def test_a_sample_longer_than_a_pass_is_served_alone() -> None:
    found = passes(fill(FairQueue(50), step("a", 80), step("b", 10), step("c", 10)))
    assert found == [[("a", 80)], [("b", 10), ("c", 10)]]


def test_training_and_reading_and_unlike_positions_do_not_share_a_pass() -> None:
    asked = torch.tensor([9])
    read = ScoreJob(EmbeddingInputs(torch.zeros(10, 2), Layout((10,))), asked, asked, b"read")
    queue = fill(FairQueue(100), step("a", 10), read, step("b", 10, axes=3), step("c", 10))
    assert passes(queue) == [[("a", 10), ("c", 10)], [("read", 10)], [("b", 10)]]


def test_a_task_is_done_alone_in_its_turn() -> None:
    queue = fill(FairQueue(100), step("a", 10))
    queue.add(Task(lambda: 1, 10, b"b"))
    queue.add(step("c", 10))
    shared, task = queue.next(), queue.next()
    assert isinstance(shared, list) and [s.job.owner for s in shared] == [b"a", b"c"]
    assert isinstance(task, Task) and queue.next() is None and len(queue) == 0


def test_a_request_that_nobody_waits_for_any_more_is_left_out() -> None:
    token = STILL_WANTED.set(lambda: False)
    gone = step("gone", 10)
    STILL_WANTED.reset(token)
    queue = fill(FairQueue(), gone, step("b", 10))
    assert passes(queue) == [[("b", 10)]]
    assert gone.future.done() and len(queue) == 0
