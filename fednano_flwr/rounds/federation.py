"""The run's clients: which are connected, which are asked, and what they reply.

Flower's node ids are random and unordered. Here a client is known by its partition, so that a seed
fixes which clients train, and replies are merged in one order.
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
MEET_SECONDS = 60.0  # for a node that joins to say who it is; less where round-timeout is less
POLL_SHARE = 0.2  # of the time that is spent on asking for replies, where asking takes long


class TooFewClientsError(RuntimeError):
    """Fewer good replies than `min-replies`, or fewer nodes than the run waits for."""


class LostClientsError(RuntimeError):
    """All rounds of a run are done, and a client took no part in any; its results are kept."""


class WorkerDiedError(RuntimeError):
    """A worker of the simulation died, and so did the one that was to do its work again."""


@dataclass
class RoundReplies:
    """Replies to one question, and what they cost.

    Attributes:
        replies: good ones, in the order of their partitions.
        failures: who did not answer well, and why.
        reasons: those that have been said, without their numbers.
        bytes_down, bytes_up: of the messages' contents, server to clients and back.
    """

    replies: list[Message] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0


class NodeView:
    """A grid that shows a strategy the chosen nodes only."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        return list(self._node_ids)

    def __len__(self) -> int:
        return len(self._node_ids)


class Federation:
    """Asks nodes and keeps track of which partition each one holds.

    Args:
        grid: Flower's connection to the nodes.
        timeouts: how long to wait for nodes to connect, and for their replies.
        min_replies: fewer good replies to a question end the run.
        say: tells people what goes on.
        progress: hears who was asked, and what came of it.
        worker_died: tells replies of clients that are to be asked again, since it is not they who
            failed.
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
        self._asked_in: dict[int, int] = {}  # node: round in which it was last asked who it is

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

    def everyone(self) -> NodeView:
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
            least: never fewer, as long as so many are there.
        """
        connected = self._met(server_round)
        known = sorted((self.partitions[n], n) for n in connected if n in self.partitions)
        if not known:  # nobody says who it is
            return NodeView(connected)
        count = max(least, round(fraction * len(known)))
        generator = np.random.default_rng(derive_seed(purpose, seed, server_round))
        chosen = generator.permutation(len(known))[:count]
        return NodeView([known[i][1] for i in sorted(chosen)])

    def first(self, server_round: int) -> NodeView:
        """The client with the lowest partition of those connected: partition 0, if it is."""
        return NodeView(sorted(self._met(server_round), key=self._order)[:1])

    def meet(self) -> None:
        """Ask the connected nodes for their partitions, which a run that begins learns in round 0.

        Raises:
            TooFewClientsError: fewer than `min-replies` have answered.
        """
        self._introduce(self.everyone().get_node_ids())

    def _met(self, server_round: int) -> list[int]:
        """The connected nodes; those that came late or failed so far were asked for partitions."""
        connected = list(self.everyone().get_node_ids())
        unknown = [
            node
            for node in connected
            if node not in self.partitions and self._asked_in.get(node) != server_round
        ]
        if unknown:
            self._asked_in |= dict.fromkeys(unknown, server_round)
            self._progress.enter(server_round, NO_ROUND)
            self._introduce(unknown, least=0, within=min(MEET_SECONDS, self._timeouts.timeout))
        return connected

    def _introduce(
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
        """Send messages and wait for their replies, good or bad, as long as there is hope.

        That is while one that owes a reply still makes steps, and at most to the round's limit.

        Args:
            what: for messages to people, as in "round 3, training".
            check: raises for a reply that must not be used; may unpack it in place, after its
                bytes were counted.
            least: fewest good replies; `min-replies` where not given.
            within: seconds to wait at most, instead of as long as there is hope.

        Raises:
            TooFewClientsError: fewer good replies than these.
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
                    repeated = [self._once_more(again, node, reply, what)]
                    self._send(repeated, what, answers, waiting)
                else:
                    self._take(reply, node, answers, what, check)
            for message_id, reason in unreadable.items():
                self._fail(answers, what, waiting.pop(message_id), reason)
            given_up = {node: lost(node) for node in waiting.values()}
            if all(given_up.values()):  # another may be back while one is waited for
                break
            self._progress.waits(words)
            took = time.monotonic() - began
            time.sleep(max(POLL_SECONDS, took / POLL_SHARE - took))
        for node in waiting.values():
            self._fail(answers, what, node, given_up[node])
        self._progress.all_in()
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
        """Push messages; those that were sent are waited for by their ids."""
        for message in messages:  # Flower's own time for a reply must not be over before
            message.metadata.ttl = max(message.metadata.ttl, 2 * self._timeouts.limit)
            answers.bytes_down += record_bytes(message.content)
        pushed = set(self._grid.push_messages(messages))
        for message in messages:
            if message.metadata.message_id in pushed:
                waiting[message.metadata.message_id] = message.metadata.dst_node_id
            else:
                node = message.metadata.dst_node_id
                self._fail(answers, what, node, "the message could not be sent")

    def _once_more(
        self, again: dict[int, Message], node: int, reply: Message, what: str
    ) -> Message:
        """The same message to a client whose worker died, once.

        Raises:
            WorkerDiedError: it was sent once more already.
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

    def _take(
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
                with suppress(ValueError):  # another node's: then this one has no name
                    self._remember(node, partition)
            self._fail(answers, what, node, reason)
            return
        try:
            answers.bytes_up += record_bytes(reply.content)
            self._remember(node, partition_of(reply))
            if check is not None:
                check(reply)
        except Exception as error:  # whatever one client replies, the others' round goes on
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
        """Note a failure; a reason that another client had is said when all are in."""
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
    """Why clients failed, each reason once with how many and which had it."""
    return "; ".join(
        f"{len(who)} of {sent} clients ({first_few(who)}): {reason}"
        for who, reason in by_reason(answers.failures.items())
    )
