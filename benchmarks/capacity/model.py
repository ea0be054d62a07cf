"""What a federation costs and what limits it: arithmetic on rates, without measuring anything.

Everything is a mean over clients. A phase of a round lasts at least as long as the busiest shared
part needs for all clients, and at least as long as one client needs with everything to itself; the
larger of the two is what `Phase.seconds` says (asymptotic bounds: Denning & Buzen, The Operational
Analysis of Queueing Network Models, 1978). Queueing between the two is left out, so it is a lower
bound that is tight away from the knee.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.capacity.sizes import (
    HELLO_BYTES,
    Model,
    Question,
    Traffic,
    evaluation_messages,
    features_traffic,
    score_traffic,
    step_traffic,
    training_messages,
)

LOOK_PAUSE = 0.1  # seconds between two looks of Flower's simulator (read in flwr 1.41.0)


@dataclass(frozen=True)
class Shard:
    """Questions of one kind that a client has, and the batches that one pass over them takes."""

    questions: float
    batches: float

    @classmethod
    def of(cls, questions: int, batch_size: int) -> Shard:
        return cls(questions, math.ceil(questions / batch_size))

    @property
    def batch(self) -> float:
        """Questions in a batch, on average."""
        return self.questions / self.batches if self.batches else 0.0


@dataclass(frozen=True)
class Workload:
    """What a client does in a round.

    Attributes:
        gradient_passes: local epochs, and one more where the strategy takes a Fisher pass.
        fisher: whether Fisher diagonals go up with the adapters.
    """

    question: Question
    train: Shard
    test: Shard
    gradient_passes: int
    fisher: bool

    @property
    def trained_tokens(self) -> float:
        return self.gradient_passes * self.train.questions * self.question.tokens

    @property
    def scored_tokens(self) -> float:
        return self.test.questions * self.question.tokens


@dataclass(frozen=True)
class Host:
    """The LLM host: `replicas` of a language model, `replicas_a_machine` behind each link.

    Attributes:
        train_tokens_per_second: of one replica, loss and gradients.
        score_tokens_per_second: of one replica, forward only.
        link_bytes_per_second: of a machine, each way.
    """

    train_tokens_per_second: float
    score_tokens_per_second: float
    link_bytes_per_second: float = math.inf
    replicas: int = 1
    replicas_a_machine: int = 8

    @property
    def links(self) -> int:
        return math.ceil(self.replicas / self.replicas_a_machine)


@dataclass(frozen=True)
class ClientSide:
    """A client's machine and its connection.

    Attributes:
        message_seconds: of a train or evaluate message before the first step: process, model, data.
        question_seconds: own computing for a question in a training pass, features known.
        score_seconds: likewise in scoring.
        encode_seconds: features of a picture, once.
        at_once: clients that can work at the same time; in simulation as many as the machine runs.
    """

    up_bytes_per_second: float = math.inf
    down_bytes_per_second: float = math.inf
    round_trip_seconds: float = 0.0
    message_seconds: float = 0.0
    question_seconds: float = 0.0
    score_seconds: float = 0.0
    encode_seconds: float = 0.0
    at_once: float = math.inf


@dataclass(frozen=True)
class SuperLink:
    """Flower's server: a message's own round trip, and what all messages together can take.

    Attributes:
        message_seconds: from sending a message to its reply, beside the client's work.
        poll_seconds: until the server looks for replies again, once a phase.
        look_seconds: of Flower's simulator, to look at one waiting message for one client; it does
            so for each of both every 0.1 s, in the process of the LLM host.
    """

    message_seconds: float = 0.0
    messages_per_second: float = math.inf
    bytes_per_second: float = math.inf
    poll_seconds: float = 0.0
    look_seconds: float = 0.0

    def looking(self, clients: float) -> float:
        """Share of a core that a simulator of `clients` uses up for looking at messages."""
        once = self.look_seconds * clients * clients / 2  # half of the messages still wait
        return once / (LOOK_PAUSE + once)


@dataclass(frozen=True)
class Merge:
    """Merging at the server: for one number of one client's adapters."""

    seconds_a_number: float = 0.0
    bytes_a_number: float = 0.0


@dataclass(frozen=True)
class Setup:
    """All that a round's cost depends on beside the number of clients."""

    exchange: str
    model: Model
    workload: Workload
    host: Host
    client: ClientSide = field(default_factory=ClientSide)
    superlink: SuperLink = field(default_factory=SuperLink)
    merge: Merge = field(default_factory=Merge)


@dataclass(frozen=True)
class Phase:
    """One part of a round; `parts` are the seconds that each thing alone would make it last."""

    name: str
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(self.parts.values(), default=0.0)

    @property
    def bottleneck(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


@dataclass(frozen=True)
class RoundCost:
    """A round: its phases one after another, and its bytes."""

    phases: tuple[Phase, ...]
    step: Traffic  # of all clients
    round: Traffic  # of all clients
    a_client: Traffic  # of one that trains and is evaluated, both kinds
    merge_bytes: float  # memory

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def longest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.seconds)


def training_traffic(setup: Setup, first: bool) -> Traffic:
    """Step traffic of one client's training; `first`: its features are not at the host yet."""
    work, args = setup.workload, (setup.exchange, setup.model, setup.workload.question)
    steps = step_traffic(*args, work.train.batch) * (work.gradient_passes * work.train.batches)
    extra = features_traffic(*args, work.train.batch) * (work.train.batches if first else 0)
    return steps + extra + Traffic(HELLO_BYTES, HELLO_BYTES)


def scoring_traffic(setup: Setup, first: bool) -> Traffic:
    """Step traffic of one client's evaluation."""
    work, args = setup.workload, (setup.exchange, setup.model, setup.workload.question)
    calls = score_traffic(*args, work.test.batch) * work.test.batches
    extra = features_traffic(*args, work.test.batch) * (work.test.batches if first else 0)
    return calls + extra + Traffic(HELLO_BYTES, HELLO_BYTES)


def round_cost(
    setup: Setup,
    trained: float,
    evaluated: float,
    first_training: bool = False,
    first_evaluation: bool = False,
) -> RoundCost:
    """A round in which `trained` clients train and `evaluated` are evaluated.

    Args:
        first_training: features of the training questions are encoded and sent in this round.
        first_evaluation: likewise of the test questions.
    """
    work, host, client = setup.workload, setup.host, setup.client
    train_step = training_traffic(setup, first_training)
    train_round = training_messages(setup.model, work.fisher)
    score_step = scoring_traffic(setup, first_evaluation)
    score_round = evaluation_messages(setup.model)
    encode = client.encode_seconds * work.question.pictured
    training = _phase(
        "training",
        setup,
        clients=trained,
        step=train_step,
        messages=train_round,
        host_seconds=work.trained_tokens / host.train_tokens_per_second,
        own_seconds=work.train.questions
        * (work.gradient_passes * client.question_seconds + encode * first_training),
        calls=work.gradient_passes * work.train.batches,
    )
    evaluation = _phase(
        "evaluation",
        setup,
        clients=evaluated,
        step=score_step,
        messages=score_round,
        host_seconds=work.scored_tokens / host.score_tokens_per_second,
        own_seconds=work.test.questions * (client.score_seconds + encode * first_evaluation),
        calls=work.test.batches,
    )
    numbers = trained * setup.model.numbers
    merging = Phase("merging", {"strategy": numbers * setup.merge.seconds_a_number})
    return RoundCost(
        phases=(training, merging, evaluation),
        step=train_step * trained + score_step * evaluated,
        round=train_round * trained + score_round * evaluated,
        a_client=train_step + train_round + score_step + score_round,
        merge_bytes=numbers * setup.merge.bytes_a_number,
    )


def _phase(
    name: str,
    setup: Setup,
    clients: float,
    step: Traffic,
    messages: Traffic,
    host_seconds: float,
    own_seconds: float,
    calls: float,
) -> Phase:
    """Seconds of all clients at each shared part, and of one client that has it all to itself."""
    if not clients:
        return Phase(name, {})
    host, client, link = setup.host, setup.client, setup.superlink
    up, down = step.up + messages.up, step.down + messages.down
    alone = {
        "client compute": own_seconds + client.message_seconds,
        "client uplink": up / client.up_bytes_per_second,
        "client downlink": down / client.down_bytes_per_second,
        "latency": calls * client.round_trip_seconds + link.message_seconds,
        "host compute (one client's)": host_seconds,
    }
    turns = max(1.0, clients / client.at_once)
    wires = host.links * host.link_bytes_per_second
    shared = {
        "host compute": clients * host_seconds / host.replicas,
        "host downlink": clients * step.up / wires,
        "host uplink": clients * step.down / wires,
        "SuperLink messages": 2 * clients / link.messages_per_second,
        "SuperLink bytes": clients * messages.both / link.bytes_per_second,
    }
    largest = max(alone, key=lambda part: alone[part])
    left = 1 - min(0.9, link.looking(clients) / client.at_once)  # of the cores
    total = turns * sum(alone.values()) / left + link.poll_seconds
    return Phase(name, {**shared, f"a client's own time, most of it {largest}": total})


def feature_bytes(setup: Setup) -> float:
    """Of one client's pictures at the host, which keeps them in the wire's width."""
    if setup.exchange != "lowrank":
        return 0.0
    work, model = setup.workload, setup.model
    pictures = (work.train.questions + work.test.questions) * work.question.pictured
    return pictures * work.question.image_tokens * model.hidden_size * model.wire_bytes


@dataclass(frozen=True)
class Carried:
    """How many clients a host carries.

    Attributes:
        at_once: that work without a pause until it is saturated (1978's N*): with more, they wait.
        an_hour: that it can serve a whole round's work in an hour, however many are at it.
        limit: what of it is saturated.
    """

    at_once: float
    an_hour: float
    limit: str


def carried(setup: Setup, first: bool = False) -> Carried:
    """How many clients the host carries, training and evaluation together."""
    cost = round_cost(setup, 1, 1, first, first)
    shared: dict[str, float] = {}
    alone = 0.0
    for phase in cost.phases:
        for part, seconds in phase.parts.items():
            if part.startswith("a client"):
                alone += seconds
            elif part.startswith("host"):
                shared[part] = shared.get(part, 0.0) + seconds
    limit = max(shared, key=lambda part: shared[part])
    return Carried(alone / shared[limit], 3600 / shared[limit], limit)


ASKS_SECONDS, LIVES_SECONDS = 3.0, 30.0
"""A waiting SuperNode asks for work, and says that it is there: read in the code of flwr 1.41.0."""


def idle_requests(connected: float) -> float:
    """Requests a second of SuperNodes that have nothing to do, sampled or not."""
    return connected / ASKS_SECONDS + connected / LIVES_SECONDS
