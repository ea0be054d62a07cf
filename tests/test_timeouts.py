"""Who is waited for, with a clock that only moves when somebody waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from flwr.app import ArrayRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from fednano_flwr.rounds import federation, progress
from fednano_flwr.rounds.compat import worker_died
from fednano_flwr.rounds.federation import (
    Federation,
    RoundReplies,
    TooFewClientsError,
    WorkerDiedError,
)
from fednano_flwr.rounds.progress import Progress
from fednano_flwr.rounds.timeouts import ReplyTimeout
from tests.replies import train_reply

TIMEOUT, LIMIT = 60.0, 1000.0
NEVER = 1e9


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Nodes:
    """A grid: each node replies so many seconds after it was asked, and makes steps until then.

    Args:
        replies: seconds until a node's reply.
        steps: seconds between a node's steps, and until when it makes any; none by default.
    """

    def __init__(
        self, clock: Clock, replies: dict[int, float], steps: dict[int, tuple[float, float]]
    ) -> None:
        self._clock, self._replies, self._steps = clock, replies, steps
        self._asked = NEVER
        self._owed: dict[str, int] = {}
        self.ttl = 0.0

    def get_node_ids(self) -> Iterable[int]:
        return list(self._replies)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._asked = self._clock()
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"question {node}"
            self._owed[f"question {node}"] = node
            self.ttl = message.metadata.ttl
        return list(self._owed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        passed = self._clock() - self._asked
        ready = [i for i in message_ids if passed >= self._replies[self._owed.get(i, 0)]]
        return [self._reply(self._owed.pop(i), i) for i in ready]

    def last_seen(self, node: int) -> float | None:
        pause, until = self._steps.get(node, (1.0, 0.0))
        passed = min(self._clock() - self._asked, until)
        return self._asked + passed // pause * pause if until else None

    def _reply(self, node: int, message_id: str) -> Message:
        reply = train_reply(ArrayRecord(), partition_id=node)
        reply.metadata.__dict__["_reply_to_message_id"] = message_id
        return reply


@pytest.fixture
def ask(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[RoundReplies, float, list[str]]]:
    """Asks nodes and tells what came back, after how many seconds, and what was said."""

    def ask(
        replies: dict[int, float],
        steps: dict[int, tuple[float, float]],
        least: int = 1,
        in_turn: bool = False,
    ) -> tuple[RoundReplies, float, list[str]]:
        clock, said = Clock(), list[str]()
        monkeypatch.setattr(federation, "time", SimpleNamespace(monotonic=clock, sleep=clock.sleep))
        nodes = Nodes(clock, replies, steps)
        timeouts = ReplyTimeout(TIMEOUT, LIMIT, nodes.last_seen, clock, in_turn)
        told = Progress(3, lambda: 0, said.append, clock=clock)
        known = Federation(cast(Grid, nodes), timeouts, least, said.append, told)
        known.partitions = {node: node for node in replies}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in replies]
        began = clock()
        answers = known.ask(messages, "round 1, training")
        assert nodes.ttl > LIMIT  # else Flower itself would drop the slow client's reply
        return answers, clock() - began, said

    return ask


Ask = Callable[..., tuple[RoundReplies, float, list[str]]]


def test_a_slow_client_that_still_makes_steps_is_waited_for(ask: Ask) -> None:
    answers, seconds, said = ask({0: 1.0, 1: 12 * TIMEOUT}, {1: (50.0, NEVER)})
    assert not answers.failures and len(answers.replies) == 2
    assert seconds == pytest.approx(12 * TIMEOUT, abs=1)
    assert said[0] == (
        "who is there: 1 of 2 clients done, no step yet; waiting for client 1 (last step 10 s ago)"
    )
    assert len(said) == 11
    assert any("client 1 (last step" in line for line in said)


def test_a_client_that_falls_silent_is_given_up_after_the_timeout(ask: Ask) -> None:
    answers, seconds, _ = ask({0: 1.0, 1: NEVER}, {1: (10.0, 200.0)})
    assert [len(answers.replies), seconds] == [1, pytest.approx(200 + TIMEOUT, abs=1)]
    assert answers.failures == {
        "client 1": "no reply, and no further step for 60 s (round-timeout)"
    }


def test_a_client_that_never_makes_a_step_is_given_up_after_the_timeout(ask: Ask) -> None:
    answers, seconds, _ = ask({0: 1.0, 1: NEVER}, {})
    assert seconds == pytest.approx(TIMEOUT, abs=1)
    assert answers.failures == {"client 1": "no reply, and no step for 60 s (round-timeout)"}


def test_clients_of_a_simulation_wait_for_their_turn_as_long_as_others_get_on(ask: Ask) -> None:
    one_after_another = {node: 0.8 * TIMEOUT * (node + 1) for node in range(5)}
    answers, _, _ = ask(one_after_another, {}, in_turn=True)
    assert not answers.failures
    answers, _, _ = ask(one_after_another, {})
    assert list(answers.failures) == [f"client {node}" for node in range(1, 5)]


def test_a_client_that_never_gets_its_turn_is_given_up_when_nobody_gets_on(ask: Ask) -> None:
    answers, seconds, _ = ask({0: 3 * TIMEOUT, 1: NEVER}, {0: (5.0, NEVER)}, in_turn=True)
    assert list(answers.failures) == ["client 1"]
    assert seconds == pytest.approx(4 * TIMEOUT, abs=1)


def test_a_client_that_pretends_to_make_progress_holds_a_round_up_to_its_limit(ask: Ask) -> None:
    answers, seconds, _ = ask({0: 1.0, 1: NEVER}, {1: (1.0, NEVER)})
    assert seconds == pytest.approx(LIMIT, abs=1)
    assert answers.failures == {"client 1": "no reply within 1000 s (round-limit)"}


def test_while_one_is_waited_for_a_silent_one_may_still_come_back(ask: Ask) -> None:
    answers, seconds, _ = ask({0: 5 * TIMEOUT, 1: 3 * TIMEOUT}, {0: (5.0, NEVER)})
    assert not answers.failures
    assert seconds == pytest.approx(5 * TIMEOUT, abs=1)


def test_too_few_replies_end_the_run_as_soon_as_nobody_makes_steps(ask: Ask) -> None:
    with pytest.raises(TooFewClientsError, match=r"1 of 2 clients replied.*no step for 60 s"):
        ask({0: 1.0, 1: NEVER}, {}, least=2)


def test_of_many_that_are_waited_for_the_most_silent_are_named(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 30.0)
    clients = {node: 40.0 for node in range(8)}
    _, _, said = ask(clients, {3: (10.0, NEVER)})
    (line,) = said
    assert "0 of 8 clients done" in line and line.endswith("client 5 (no step yet), 3 more")
    assert "client 3" not in line


def test_a_sign_from_before_the_question_is_none() -> None:
    clock = Clock()
    timeouts = ReplyTimeout(TIMEOUT, LIMIT, lambda node: 4000.0, clock)
    clock.now += 30
    assert timeouts.silence(1, 5000.0) == 30
    assert timeouts.describe({1: "client 1"}, 5000.0) == "waiting for client 1 (no step yet)"


class Workers(Nodes):
    """A simulation in which the workers of some clients die, so many times each."""

    def __init__(self, clock: Clock, deaths: dict[int, int]) -> None:
        super().__init__(clock, dict.fromkeys(range(3), 1.0), {})
        self._deaths, self.asked = deaths, list[int]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.asked += [message.metadata.dst_node_id for message in sent]
        return super().push_messages(sent)

    def _reply(self, node: int, message_id: str) -> Message:
        if self._deaths.get(node, 0) == 0:
            return super()._reply(node, message_id)
        self._deaths[node] -= 1
        error = Error(0, "<class 'ray.exceptions.ActorDiedError'>:<'The actor died.'>")
        reply = Message(error, reply_to=Message(RecordDict(), node, MessageType.TRAIN))
        reply.metadata.__dict__["_reply_to_message_id"] = message_id
        return reply


@pytest.fixture
def simulate(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[RoundReplies, Workers, list[str]]]:
    def simulate(deaths: dict[int, int], in_simulation: bool = True) -> Any:
        clock, said = Clock(), list[str]()
        monkeypatch.setattr(federation, "time", SimpleNamespace(monotonic=clock, sleep=clock.sleep))
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        told = Progress(3, lambda: 0, said.append, clock=clock)
        workers, died = Workers(clock, deaths), worker_died if in_simulation else None
        timeouts = ReplyTimeout(TIMEOUT, LIMIT, clock=clock)
        known = Federation(cast(Grid, workers), timeouts, 1, said.append, told, died)
        known.partitions = {node: node for node in range(3)}
        messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in range(3)]
        return known.ask(messages, "round 2, training"), workers, said

    return simulate


def test_a_client_whose_worker_died_is_asked_again_in_the_same_round(simulate: Any) -> None:
    answers, workers, said = simulate({0: 1, 2: 1})
    assert [federation.partition_of(reply) for reply in answers.replies] == [0, 1, 2]
    assert not answers.failures and sorted(workers.asked) == [0, 0, 1, 2, 2]
    assert [line for line in said if "client 2" in line and "asked again" in line]


def test_a_client_whose_worker_dies_again_ends_the_run_with_its_reason(simulate: Any) -> None:
    with pytest.raises(WorkerDiedError, match=r"round 2.*client 1.*actor died.*resume.*client-cpu"):
        simulate({1: 2})


def test_outside_a_simulation_such_a_reply_is_its_clients_failure(simulate: Any) -> None:
    answers, workers, _ = simulate({1: 2}, in_simulation=False)
    assert "client 1" in answers.failures and workers.asked == [0, 1, 2]


class SuperLink(HttpGrid):
    """Hands each reply out once; one of them cannot be read, or nobody is there any more."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self._there: dict[str, int] = {}

    def get_node_ids(self) -> Iterable[int]:
        return [0, 1, 2]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"question {node}"
            self._there[f"question {node}"] = node
        return list(self._there)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = {i: self._there.pop(i) for i in message_ids if i in self._there}
        if 1 in found.values() and self._error is not None:
            raise self._error
        replies = []
        for message_id, node in found.items():
            reply = train_reply(ArrayRecord(), partition_id=node)
            of = message_id if self._error is not None else "question 2"  # what a node may write
            reply.metadata.__dict__["_reply_to_message_id"] = of
            replies.append(reply)
        return replies


def ask_superlink(error: Exception | None) -> RoundReplies:
    told = Progress(3, lambda: 0, lambda line: None)
    known = Federation(SuperLink(error), ReplyTimeout(5.0, 10.0), 1, lambda line: None, told)
    known.partitions = {node: node for node in range(3)}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    messages: list[Any] = [Message(RecordDict(), node, MessageType.TRAIN) for node in range(3)]
    return known.ask(messages, "round 1, training")


def test_a_reply_that_cannot_be_read_is_its_senders_failure_and_the_others_are_kept() -> None:
    answers = ask_superlink(KeyError("f" * 64))
    assert [federation.partition_of(reply) for reply in answers.replies] == [0, 2]
    assert list(answers.failures) == ["client 1"]
    assert "its reply cannot be read: KeyError" in answers.failures["client 1"]


def test_a_reply_belongs_to_the_question_that_was_asked_for_whatever_it_says() -> None:
    answers = ask_superlink(None)
    assert [federation.partition_of(reply) for reply in answers.replies] == [0, 1, 2]
    assert not answers.failures


def test_a_superlink_that_is_gone_is_no_clients_failure() -> None:
    with pytest.raises(httpx.ConnectError):
        ask_superlink(httpx.ConnectError("connection refused"))
