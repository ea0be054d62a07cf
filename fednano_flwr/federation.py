"""The run's clients: who is there, who is asked, and what came back.

Flower's node ids are random and unordered. Here a client is known by its partition, so that a seed
fixes which clients train, and replies are merged in one order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fednano_flwr.patience import Patience
from fednano_flwr.progress import Progress
from fednano_flwr.pulling import pull
from fednano_flwr.records import CLIENT_FAILED, partition_of, record_bytes

POLL_SECONDS = 0.2
POLL_SHARE = 0.2  # of the time that is spent on asking for replies, where asking takes long


class TooFewClientsError(RuntimeError):
    """Fewer good replies than `min-replies`, or fewer nodes than the run waits for."""


@dataclass
class Answers:
    """Replies to one question, and what they cost.

    Attributes:
        replies: good ones, in the order of their partitions.
        failures: who did not answer well, and why.
        bytes_down, bytes_up: of the messages' contents, server to clients and back.
    """

    replies: list[Message] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0


class NodeView:
    """A grid that shows a strategy the chosen nodes only."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        return list(self._node_ids)


class Federation:
    """Asks nodes and keeps track of which partition each one holds.

    Args:
        grid: Flower's connection to the nodes.
        patience: how long to wait for nodes to connect, and for their replies.
        min_replies: fewer good replies to a question end the run.
        say: tells people what goes on.
        progress: hears who was asked, and what came of it.
    """

    def __init__(
        self,
        grid: Grid,
        patience: Patience,
        min_replies: int,
        say: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._grid = grid
        self._patience = patience
        self._min_replies = min_replies
        self._say = say
        self._progress = progress
        self.partitions: dict[int, int] = {}

    def wait_for_nodes(self, count: int, key: str) -> None:
        """Wait until `count` nodes are connected; `key` is what asks for so many.

        Raises:
            TooFewClientsError: they were not within the round's timeout.
        """
        started, said = time.monotonic(), 0.0
        while (there := len(list(self._grid.get_node_ids()))) < count:
            waited = time.monotonic() - started
            if waited > self._patience.timeout:
                raise TooFewClientsError(
                    f"{there} of {count} clients connected within {self._patience.timeout:.0f} s "
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

    def sample(self, fraction: float, seed: int, server_round: int, *draw: int) -> NodeView:
        """A fraction of the known clients, at least one; fixed by seed, round and partitions.

        Args:
            draw: tells several draws of a round apart.
        """
        everyone = self.everyone()
        connected = set(everyone.get_node_ids())
        known = sorted((p, node) for node, p in self.partitions.items() if node in connected)
        if not known:  # all have come back under new ids
            return everyone
        count = max(1, round(fraction * len(known)))
        chosen = np.random.default_rng([seed, server_round, *draw]).permutation(len(known))[:count]
        return NodeView([known[i][1] for i in sorted(chosen)])

    def meet(self) -> None:
        """Ask the connected nodes for their partitions, which a run that begins learns in round 0.

        Raises:
            TooFewClientsError: fewer than `min-replies` have answered.
        """
        nodes = self.everyone().get_node_ids()
        kind = MessageType.QUERY
        self.ask([Message(RecordDict(), node, kind) for node in nodes], "who is there")

    def first(self) -> NodeView:
        """The client with the lowest partition of those connected: partition 0, if it is."""
        return NodeView(list(self.everyone().get_node_ids())[:1])

    def ask(
        self,
        messages: Iterable[Message],
        what: str,
        check: Callable[[Message], None] | None = None,
        least: int | None = None,
    ) -> Answers:
        """Send messages and wait for their replies, good or bad, as long as there is hope.

        That is while one that owes a reply still makes steps, and at most to the round's limit.

        Args:
            what: for messages to people, as in "round 3, training".
            check: raises for a reply that must not be used; may unpack it in place, after its
                bytes were counted.
            least: fewest good replies; `min-replies` where not given.

        Raises:
            TooFewClientsError: fewer good replies than these.
        """
        sent, patience = list(messages), self._patience
        for message in sent:  # Flower's own time for a reply must not be over before
            message.metadata.ttl = max(message.metadata.ttl, 2 * patience.limit)
        answers = Answers(bytes_down=sum(record_bytes(message.content) for message in sent))
        self._progress.asked(len(sent))
        pushed = set(self._grid.push_messages(sent))
        waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
        for message_id in waiting.keys() - pushed:
            self._fail(answers, what, waiting.pop(message_id), "the message could not be sent")
        asked = moved = patience.clock()

        def words() -> str:
            return patience.words({node: self._name(node) for node in waiting.values()}, asked)

        while waiting:
            began = time.monotonic()
            replies, unreadable = pull(self._grid, list(waiting))
            moved = patience.moved(waiting.values(), patience.clock() if replies else moved)
            for message_id, reply in replies.items():
                self._take(reply, waiting.pop(message_id), answers, what, check)
            for message_id, reason in unreadable.items():
                self._fail(answers, what, waiting.pop(message_id), reason)
            given_up = {node: patience.given_up(node, asked, moved) for node in waiting.values()}
            if all(given_up.values()):  # another may be back while one is waited for
                break
            self._progress.waits(words)
            took = time.monotonic() - began
            time.sleep(max(POLL_SECONDS, took / POLL_SHARE - took))
        for node in waiting.values():
            self._fail(answers, what, node, given_up[node])
        self._progress.all_in()
        least = self._min_replies if least is None else least
        if len(answers.replies) < least:
            raise TooFewClientsError(
                f"{what}: {len(answers.replies)} of {len(sent)} clients replied, min-replies is "
                f"{least}. " + "; ".join(f"{k}: {v}" for k, v in answers.failures.items())
            )
        answers.replies.sort(key=partition_of)
        return answers

    def _take(
        self,
        reply: Message,
        node: int,
        answers: Answers,
        what: str,
        check: Callable[[Message], None] | None,
    ) -> None:
        if reply.has_error():
            self._fail(answers, what, node, _reason(reply))
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

    def _fail(self, answers: Answers, what: str, node: int, reason: str) -> None:
        who = self._name(node)
        answers.failures[who] = reason
        self._say(f"{what}: {who} failed: {reason}")
        self._progress.failed()

    def _name(self, node: int) -> str:
        return f"client {self.partitions[node]}" if node in self.partitions else f"node {node}"

    def _order(self, node: int) -> tuple[int, int]:
        return (self.partitions.get(node, 2**63), node)


def _reason(reply: Message) -> str:
    """What a client says went wrong, or the last line of Flower's traceback."""
    if reply.error.code == CLIENT_FAILED:
        return reply.error.reason or "no reason given"
    lines = [line for line in (reply.error.reason or "").strip().splitlines() if line.strip()]
    return f"{lines[-1].strip() if lines else 'no reason given'} (code {reply.error.code})"
