"""What is told of a round while it lasts, with a clock that a test moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fednano_flwr.rounds import progress as of_progress
from fednano_flwr.rounds.progress import EVALUATION, TRAINING, Progress
from fednano_flwr.rounds.snapshot import Snapshot, read, write


class Told:
    """A `Progress` of 5 rounds, its clock, its steps and what it said."""

    def __init__(self, file: Path | None = None) -> None:
        self.now, self.steps, self.said = 1000.0, 0, list[str]()
        self.progress = Progress(5, lambda: self.steps, self.said.append, file, lambda: self.now)

    def pass_by(self, seconds: float, steps: int = 0, words: str = "waiting for client 1") -> None:
        self.now += seconds
        self.steps += steps
        self.progress.tick(lambda: words)


def record(number: int, accuracy: float, loss: float | None, seconds: float) -> dict[str, Any]:
    return {"round": number, "accuracy": accuracy, "train_loss": loss, "seconds": seconds}


def reply(**metrics: float) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    numbers = {key.replace("_", "-"): value for key, value in metrics.items()}
    content = RecordDict({"metrics": MetricRecord(numbers)})
    return Message(content, dst_node_id=1, message_type=MessageType.TRAIN)


def scored(score: float, questions: int) -> Message:
    return reply(
        score=score, num_examples=questions, test_loss=0.5 * questions, test_tokens=2 * questions
    )


def test_a_phase_counts_its_own_clients_and_steps() -> None:
    told = Told()
    told.steps = 100  # of the phase before
    told.progress.start_phase(3, TRAINING)
    told.progress.asked(4)
    told.progress.replied(reply(train_loss=0.5, num_examples=10))
    told.progress.failed()
    told.pass_by(20.0, steps=30)
    found = told.progress.snapshot()
    assert (found.round, found.rounds, found.phase) == (3, 5, "training")
    assert (found.asked, found.done, found.failed) == (4, 1, 1)
    assert (found.steps, found.per_second) == (30, 1.5)
    told.progress.start_phase(3, EVALUATION)
    told.progress.asked(2)
    assert told.progress.snapshot() == Snapshot(3, 5, "evaluation", asked=2, loss=0.5)


def test_accuracy_and_loss_are_weighted_by_questions_and_else_the_last_rounds() -> None:
    told = Told()
    told.progress.round_done(record(0, 0.6, None, 5.0))
    told.progress.round_done(record(1, 0.7, 0.9, 10.0))
    told.progress.start_phase(2, TRAINING)
    told.progress.asked(2)
    found = told.progress.snapshot()
    assert (found.accuracy, found.so_far, found.loss) == (0.7, False, 0.9)
    told.progress.replied(reply(train_loss=0.2, num_examples=30))
    told.progress.replied(reply(train_loss=0.6, num_examples=10))
    told.progress.start_phase(2, EVALUATION)
    told.progress.asked(3)
    assert told.progress.snapshot().accuracy == 0.7
    told.progress.replied(scored(0.0, 0))  # a client without test questions
    assert told.progress.snapshot().accuracy == 0.7
    told.progress.replied(scored(8.5, 10))
    told.progress.replied(scored(9.5, 30))
    found = told.progress.snapshot()
    assert (found.accuracy, found.so_far, found.loss) == (18 / 40, True, pytest.approx(0.3))
    assert found.test_loss == 0.25
    told.progress.round_done(record(2, 0.6, 0.3, 10.0))
    told.progress.start_phase(3, TRAINING)
    found = told.progress.snapshot()
    assert (found.accuracy, found.so_far, found.loss) == (0.6, False, 0.3)


def test_what_is_left_is_reckoned_from_rounds_that_trained() -> None:
    told = Told()
    told.progress.start_phase(0, EVALUATION)
    told.progress.round_done(record(0, 0.6, None, 500.0))
    told.progress.start_phase(1, TRAINING)
    assert told.progress.snapshot().left is None
    told.progress.round_done(record(1, 0.6, 0.9, 10.0))
    told.progress.round_done(record(2, 0.6, 0.9, 14.0))
    told.progress.start_phase(3, TRAINING)
    told.now += 2
    assert told.progress.snapshot().left == 10 + 2 * 12
    told.progress.start_phase(3, EVALUATION)
    told.now += 50  # longer than those before
    assert told.progress.snapshot().left == 2 * 12


def test_a_round_that_is_silent_for_a_minute_says_where_it_is() -> None:
    told = Told()
    told.progress.start_phase(3, TRAINING)
    told.progress.asked(10)
    for _ in range(4):
        told.progress.replied(reply(train_loss=0.2, num_examples=30))
    for _ in range(7):
        told.pass_by(9.9, steps=12)
    assert told.said == [
        "round  3  training: 4 of 10 clients done, 84 steps, 1.2 a second; waiting for client 1"
    ]
    told.pass_by(59.0)
    assert len(told.said) == 1
    told.progress.failed()  # the federation says why: not silent
    told.pass_by(59.0)
    assert len(told.said) == 1
    told.pass_by(1.0)
    assert told.said[1:] == [
        "round  3  training: 4 of 10 clients done, 1 failed, 84 steps, 0.45 a second; "
        "waiting for client 1"
    ]


def test_a_minute_is_the_rounds_and_not_the_phases() -> None:
    told = Told()
    told.progress.start_phase(1, TRAINING)
    told.progress.asked(1)
    told.pass_by(40.0)
    told.progress.start_phase(1, EVALUATION)
    told.progress.asked(2)
    told.pass_by(20.0)
    assert told.said == [
        "round  1  evaluation: 0 of 2 clients done, no step yet; waiting for client 1"
    ]
    told.pass_by(40.0)
    told.progress.start_phase(2, TRAINING)
    told.progress.asked(1)
    told.pass_by(20.0)
    assert len(told.said) == 1


def test_with_a_file_no_line_is_said_and_the_file_is_written_twice_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Snapshot] = []
    monkeypatch.setattr(of_progress, "write", lambda file, what: written.append(what))
    told = Told(tmp_path / "progress.json")
    told.progress.start_phase(1, TRAINING)
    told.progress.asked(2)
    for _ in range(1000):
        told.pass_by(0.1, steps=1)
    assert told.said == []
    assert 1 + 100 / 0.6 <= len(written) <= 1 + 100 / 0.5
    assert written[-1].steps > 990 and not any(found.waiting for found in written)


def test_who_is_waited_for_is_in_the_file_once_nobody_gets_on(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    told = Told(file)
    told.progress.start_phase(1, TRAINING)
    told.progress.asked(2)
    told.pass_by(29.0, steps=1)
    told.pass_by(29.0)
    assert (found := read(file)) is not None and found.waiting == ""
    told.pass_by(1.0)
    assert (found := read(file)) is not None and found.waiting == "waiting for client 1"
    told.pass_by(1.0, steps=1)
    assert (found := read(file)) is not None and found.waiting == ""


def test_the_file_says_all_of_it_and_is_gone_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    told = Told(file)
    told.progress.round_done(record(1, 0.7, 0.9, 10.0))
    told.progress.start_phase(2, EVALUATION)
    told.progress.asked(1)
    told.progress.replied(scored(3.0, 4))
    told.progress.refresh()
    assert read(file) == told.progress.snapshot() and read(file) != Snapshot(2, 5, EVALUATION)
    assert list(tmp_path.iterdir()) == [file]
    told.progress.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"round": 1}', '{"another": "version"}'])
def test_a_file_that_says_nothing_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "progress.json"
    assert read(file) is None
    file.write_text(text)
    assert read(file) is None
    write(file, Snapshot(1, 2, TRAINING))
    assert read(file) == Snapshot(1, 2, TRAINING)


def test_a_folder_that_is_gone_turns_progress_into_lines(tmp_path: Path) -> None:
    told = Told(tmp_path / "gone" / "progress.json")
    told.progress.start_phase(1, TRAINING)
    told.progress.asked(2)
    told.pass_by(60.0)
    assert "progress is printed in lines" in told.said[0]
    assert told.said[1].startswith("round  1  training: 0 of 2 clients done")
    told.progress.close()
    assert len(told.said) == 2


@pytest.mark.parametrize("on_screen", [True, False])
def test_whatever_goes_wrong_in_telling_is_said_once_and_ends_nothing(
    tmp_path: Path, on_screen: bool
) -> None:
    told = Told(tmp_path / "progress.json" if on_screen else None)
    told.progress.start_phase(1, TRAINING)
    told.progress.asked(2)
    assert len(list(tmp_path.iterdir())) == on_screen
    told.progress.replied(reply(num_examples=3))  # no loss
    told.progress.replied(reply(num_examples=3))
    told.pass_by(100.0)
    told.progress.refresh()
    told.progress.close()
    assert told.said == ["progress is no longer shown: ValueError: metric train-loss is missing"]
    assert not list(tmp_path.iterdir())  # else a screen would go on showing it


def test_a_standard_output_that_is_gone_ends_nothing() -> None:
    def closed(line: str) -> None:
        raise BrokenPipeError

    progress = Progress(1, lambda: 0, closed, clock=iter(range(0, 10**6, 100)).__next__)
    progress.asked(1)
    progress.tick(lambda: "")
    assert progress.broken


@pytest.mark.parametrize(
    ("steps", "per_second", "says"),
    [
        (0, 0.0, "no step yet"),
        (3, 0.034, "3 steps, 0.03 a second"),
        (812, 1.24, "812 steps, 1.2 a second"),
        (12345, 1234.5, "12,345 steps, 1234.5 a second"),
    ],
)
def test_slow_steps_have_more_digits(steps: int, per_second: float, says: str) -> None:
    snapshot = Snapshot(1, 2, TRAINING, steps=steps)
    assert dataclasses.replace(snapshot, per_second=per_second).pace == says
