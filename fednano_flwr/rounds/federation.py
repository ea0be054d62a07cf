"""The run's clients: waiting for them, sampling them, and collecting their replies.

Flower's node ids are random. Clients are identified by their partition, so that a seed fixes which
clients train and the order in which their replies are merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fednano_flwr.base.reasons import by_reason, first_few, without_numbers
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.rounds.compat import pull
from fednano_flwr.rounds.progress import NO_ROUND, Progress
from fednano_flwr.rounds.records import failure_of, partition_of, record_bytes
from fednano_flwr.rounds.timeouts import ReplyTimeout

POLL_SECONDS = 0.2
PARTITION_SECONDS = 60.0  # for a new node's partition; less where round-timeout is less
POLL_SHARE = 0.2  # at most this share of the time is spent polling


class TooFewClientsError(RuntimeError):
    """Fewer good replies than `min-replies`, or fewer nodes than the run waits for."""


class LostClientsError(RuntimeError):
    """All rounds are done, but a client took no part in any; the results are complete."""


class WorkerDiedError(RuntimeError):
    """A worker of the simulation died, and its replacement died at the same message."""


@dataclass
class RoundReplies:
    """Replies to one batch of messages, and their size.

    Attributes:
        replies: good ones, in the order of their partitions.
        failures: reason by client.
        reasons: those already printed, without their numbers.
        bytes_down, bytes_up: of the messages' contents, server to clients and back.
    """

    replies: list[Message] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0


class NodeView:
    """A grid that has only the sampled nodes."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        return list(self._node_ids)

    def __len__(self) -> int:
        return len(self._node_ids)


class Federation:
    """Sends messages to nodes and knows each node's partition.

    Args:
        grid: Flower's connection to the nodes.
        timeouts: how long to wait for nodes to connect, and for their replies.
        min_replies: fewer good replies end the run.
        say: prints one line.
        progress: counts messages and replies.
        worker_died: whether an error reply came from a dead worker; its client is asked again.
    """

    def __init__(
        self,
        grid: Grid,
        timeouts: ReplyTimeout,
        min_replies: int,
        say: Callable[[str], None],
        progress: Progress,
        worker_died: Callable[[Message], bool] | None = None,
    ) -> None:
        self._grid = grid
        self._timeouts = timeouts
        self._min_replies = min_replies
        self._say = say
        self._progress = progress
        self._worker_died = worker_died
        self.partitions: dict[int, int] = {}
        self._asked_in: dict[int, int] = {}  # node: round of the last query for its partition

    def wait_for_nodes(self, count: int, key: str) -> None:
        """Wait until `count` nodes are connected; `key` is what asks for so many.

        Raises:
            TooFewClientsError: they were not within the round's timeout.
        """
        started, said = time.monotonic(), 0.0
        while (there := len(list(self._grid.get_node_ids()))) < count:
            waited = time.monotonic() - started
            if waited > self._timeouts.timeout:
                raise TooFewClientsError(
                    f"{there} of {count} clients connected within {self._timeouts.timeout:.0f} s "
                    f"({key}, round-timeout)"
                )
            if waited >= said:
                self._say(f"waiting for clients: {there} of {count} connected")
                said = waited + 10
            time.sleep(0.5)

    def all_nodes(self) -> NodeView:
        """All connected nodes, in the order of their partitions where known.

        Raises:
            TooFewClientsError: fewer than `min-replies` came within the timeout.
        """
        self.wait_for_nodes(self._min_replies, "min-replies")
        return NodeView(sorted(self._grid.get_node_ids(), key=self._order))

    def sample(
        self, fraction: float, seed: int, server_round: int, purpose: Purpose, least: int = 1
    ) -> NodeView:
        """A fraction of the known clients; fixed by seed, round, purpose and partitions.

        Args:
            least: fewest clients, if so many are connected.
        """
        connected = self._connected(server_round)
        known = sorted((self.partitions[n], n) for n in connected if n in self.partitions)
        if not known:  # no partition is known
            return NodeView(connected)
        count = max(least, round(fraction * len(known)))
        generator = np.random.default_rng(derive_seed(purpose, seed, server_round))
        chosen = generator.permutation(len(known))[:count]
        return NodeView([known[i][1] for i in sorted(chosen)])

    def first(self, server_round: int) -> NodeView:
        """The connected client with the lowest partition."""
        return NodeView(sorted(self._connected(server_round), key=self._order)[:1])

    def ask_partitions(self) -> None:
        """Ask all connected nodes for their partitions; a new run learns them in round 0 instead.

        Raises:
            TooFewClientsError: fewer than `min-replies` have answered.
        """
        self._ask_partitions(self.all_nodes().get_node_ids())

    def _connected(self, server_round: int) -> list[int]:
        """The connected nodes, after a query for partitions that are still unknown."""
        connected = list(self.all_nodes().get_node_ids())
        unknown = [
            node
            for node in connected
            if node not in self.partitions and self._asked_in.get(node) != server_round
        ]
        if unknown:
            self._asked_in |= dict.fromkeys(unknown, server_round)
            self._progress.start_phase(server_round, NO_ROUND)
            self._ask_partitions(
                unknown, least=0, within=min(PARTITION_SECONDS, self._timeouts.timeout)
            )
        return connected

    def _ask_partitions(
        self, nodes: Iterable[int], least: int | None = None, within: float | None = None
    ) -> None:
        questions = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        self.ask(questions, "who is there", least=least, within=within)

    def ask(
        self,
        messages: Iterable[Message],
        what: str,
        check: Callable[[Message], None] | None = None,
        least: int | None = None,
        within: float | None = None,
    ) -> RoundReplies:
        """Send messages and wait for all replies.

        Waiting ends when no client that owes a reply makes steps, or at the round's limit.

        Args:
            what: named in output, as in "round 3, training".
            check: raises for a reply that must not be used; may unpack it in place, after its
                bytes were counted.
            least: fewest good replies; default `min-replies`.
            within: longest wait in seconds, instead of the timeouts.

        Raises:
            TooFewClientsError: fewer good replies than `least`.
            WorkerDiedError: a client was asked again, and its worker died again.
        """
        sent, timeouts = list(messages), self._timeouts
        answers, waiting = RoundReplies(), dict[str, int]()
        again: dict[int, Message] = {m.metadata.dst_node_id: m for m in sent}
        self._progress.asked(len(sent))
        self._send(sent, what, answers, waiting)
        asked = moved = timeouts.clock()

        def lost(node: int) -> str:
            if within is None:
                return timeouts.lost(node, asked, moved)
            late = timeouts.clock() - asked >= within
            return f"no reply within {within:.0f} s" if late else ""

        def words() -> str:
            return timeouts.describe({node: self._name(node) for node in waiting.values()}, asked)

        while waiting:
            began = time.monotonic()
            replies, unreadable = pull(self._grid, list(waiting))
            moved = timeouts.last_progress(waiting.values(), timeouts.clock() if replies else moved)
            for message_id, reply in replies.items():
                node = waiting.pop(message_id)
                if self._worker_died is not None and self._worker_died(reply):
                    repeated = [self._retry(again, node, reply, what)]
                    self._send(repeated, what, answers, waiting)
                else:
                    self._accept(reply, node, answers, what, check)
            for message_id, reason in unreadable.items():
                self._fail(answers, what, waiting.pop(message_id), reason)
            given_up = {node: lost(node) for node in waiting.values()}
            if all(given_up.values()):  # a lost client may reply while others are waited for
                break
            self._progress.tick(words)
            took = time.monotonic() - began
            time.sleep(max(POLL_SECONDS, took / POLL_SHARE - took))
        for node in waiting.values():
            self._fail(answers, what, node, given_up[node])
        self._progress.refresh()
        for who, _ in by_reason(answers.failures.items()):
            if who[1:]:
                count = f"{len(who)} of {len(sent)} clients"
                self._say(f"{what}: {first_few(who[1:])} failed as {who[0]} did ({count})")
        least = self._min_replies if least is None else least
        if len(answers.replies) < least:
            raise TooFewClientsError(
                f"{what}: {len(answers.replies)} of {len(sent)} clients replied, min-replies is "
                f"{least}. " + _reasons(answers, len(sent))
            )
        answers.replies.sort(key=partition_of)
        return answers

    def _send(
        self, messages: list[Message], what: str, answers: RoundReplies, waiting: dict[str, int]
    ) -> None:
        """Push messages; `waiting` gets the ids of those that were sent."""
        for message in messages:  # Flower's own limit must not end the wait
            message.metadata.ttl = max(message.metadata.ttl, 2 * self._timeouts.limit)
            answers.bytes_down += record_bytes(message.content)
        pushed = set(self._grid.push_messages(messages))
        for message in messages:
            if message.metadata.message_id in pushed:
                waiting[message.metadata.message_id] = message.metadata.dst_node_id
            else:
                node = message.metadata.dst_node_id
                self._fail(answers, what, node, "the message could not be sent")

    def _retry(self, again: dict[int, Message], node: int, reply: Message, what: str) -> Message:
        """The same message again, for a client whose worker died.

        Raises:
            WorkerDiedError: it was sent again before.
        """
        first = again.pop(node, None)
        if first is None:
            raise WorkerDiedError(
                f"{what}: the worker of {self._name(node)} died, and that of its second try too: "
                f"{failure_of(reply)[1]}. What was written of earlier rounds is still there, and "
                'resume = "auto" goes on from it. Where memory was short, let fewer clients work '
                "at once (--client-cpus)"
            )
        self._say(f"{what}: the worker of {self._name(node)} died; the client is asked again")
        return Message(first.content, node, first.metadata.message_type)

    def _accept(
        self,
        reply: Message,
        node: int,
        answers: RoundReplies,
        what: str,
        check: Callable[[Message], None] | None,
    ) -> None:
        if reply.has_error():
            partition, reason = failure_of(reply)
            if partition is not None:
                with suppress(ValueError):  # held by another node: this one stays unnamed
                    self._remember(node, partition)
            self._fail(answers, what, node, reason)
            return
        try:
            answers.bytes_up += record_bytes(reply.content)
            self._remember(node, partition_of(reply))
            if check is not None:
                check(reply)
        except Exception as error:  # one client's reply must not end the round
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self._fail(answers, what, node, f"reply refused: {kind}{error}")
            return
        answers.replies.append(reply)
        self._progress.replied(reply)

    def _remember(self, node: int, partition: int) -> None:
        holders = {p: n for n, p in self.partitions.items()}
        if holders.get(partition, node) != node and holders[partition] in self._grid.get_node_ids():
            raise ValueError(f"partition {partition} is held by another connected node already")
        self.partitions = {n: p for n, p in self.partitions.items() if p != partition}
        self.partitions[node] = partition

    def _fail(self, answers: RoundReplies, what: str, node: int, reason: str) -> None:
        """Note a failure; a reason that was printed before is only counted."""
        who, alike = self._name(node), without_numbers(reason)
        if alike not in answers.reasons:
            answers.reasons.add(alike)
            self._say(f"{what}: {who} failed: {reason}")
        answers.failures[who] = reason
        self._progress.failed()

    def _name(self, node: int) -> str:
        return f"client {self.partitions[node]}" if node in self.partitions else f"node {node}"

    def _order(self, node: int) -> tuple[int, int]:
        return (self.partitions.get(node, 2**63), node)


def _reasons(answers: RoundReplies, sent: int) -> str:
    """Each reason once, with the clients that had it."""
    return "; ".join(
        f"{len(who)} of {sent} clients ({first_few(who)}): {reason}"
        for who, reason in by_reason(answers.failures.items())
    )
