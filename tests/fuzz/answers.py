"""What a host that means harm, or is broken, could answer a client."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch

from fednano_flwr.exchange.at_host import Turn
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.errors import (
    FeaturesMissingError,
    GoneError,
    HostRefusedError,
    HostUnreachableError,
)
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import AdaptedBatch, Feature, Layout, NewTokens
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.llm.host import FrozenLLM
from tests.fuzz.messages import HOWS, fill, mutant, spoil
from tests.fuzz.running import Tally
from tests.fuzz.service import SIZE, stub

DOCUMENTED = (HostRefusedError, HostUnreachableError, FeaturesMissingError, GoneError)


class Malicious:
    """In the place of a client's session: the true answer, or something made of it."""

    def __init__(self, rng: random.Random, how: str) -> None:
        self._dispatcher = Dispatcher(FrozenLLM(stub(), 64))
        self._rng, self._how = rng, how

    def ask(self, message: bytes, timeout: float) -> bytes:
        true = self._dispatcher.answer(message, b"1/2").SerializeToString()
        if self._how == "true":
            return true
        if self._how == "cut and flipped":
            return mutant(true, self._rng)
        answer = pb.Answer.FromString(true)
        if self._how == "spoiled":
            spoil(answer, self._rng, self._rng.randint(1, 3))
        else:
            answer = pb.Answer()
            kind = self._rng.choice([field.name for field in pb.Answer.DESCRIPTOR.fields])
            if kind in ("refused", "busy"):
                setattr(answer, kind, self._rng.choice(("", "why", "é" * 1000)))
            elif kind in ("gone", "session_gone"):
                setattr(answer, kind, True)
            else:
                getattr(answer, kind).SetInParent()
                fill(getattr(answer, kind), self._rng)
        return answer.SerializeToString()

    def close(self) -> None:
        pass


LABELS = torch.tensor([-100, -100, -100, 5])


def _batch() -> AdaptedBatch:
    return AdaptedBatch(
        hidden=torch.ones(4, SIZE),
        sites=torch.tensor([1, 0, 0, 1], dtype=torch.int8),
        token_ids=torch.tensor([3, 2, 2, 4]),
        features=(Feature(b"k", torch.ones(2, SIZE)),),
        z={site: torch.ones(2, 1).requires_grad_() for site in ("image", "text")},
        b={site: torch.ones(SIZE, 1).requires_grad_() for site in ("image", "text")},
        layout=Layout((4,)),
    )


def _plain() -> EmbeddingInputs:
    return EmbeddingInputs(torch.ones(4, SIZE), Layout((4,)))


ASKS: dict[str, Callable[[RemoteLLM], object]] = {
    "a step": lambda remote: LowRankExchange(remote).loss(_batch(), LABELS).backward(),
    "a step in two": lambda remote: LowRankExchange(remote, "client").loss(_batch(), LABELS),
    "embeddings": lambda remote: remote.step(_plain(), LABELS),
    "scores": lambda remote: remote.score(_plain(), torch.tensor([3]), torch.tensor([1, 2])),
    "all scores": lambda remote: LowRankExchange(remote, "client").token_losses(
        _batch(), torch.tensor([3]), torch.tensor([1])
    ),
    "losses": lambda remote: remote.token_losses(_plain(), torch.tensor([3]), torch.tensor([1])),
    "an answer's first token": lambda remote: LowRankExchange(remote).prefill(_batch(), 3),
    "an answer's next token": lambda remote: remote.release(
        remote.decode(
            remote.prefill(remote.reserve(9).cache, _plain()).cache,
            NewTokens(torch.tensor([0]), torch.tensor([3]), torch.ones(1, SIZE)),
        ).cache
    ),
    "a session's step": lambda remote: remote.step(
        _plain().with_(turn=Turn(remote.begin(None), 1)), LABELS
    ),
    "a session's end": lambda remote: remote.end(Turn(remote.begin(None), 1)),
    "what runs there": lambda remote: remote.describe(),
    "features": lambda remote: remote.keep_features([Feature(b"k", torch.ones(2, SIZE))]),
}


def answered(ask: str, how: str, rng: random.Random, remote: RemoteLLM) -> str:
    """How a client's request ends."""
    remote._host._session = Malicious(rng, how)  # type: ignore[assignment]
    try:
        ASKS[ask](remote)
    except DOCUMENTED as error:
        return type(error).__name__
    return "used"


def client() -> RemoteLLM:
    """One that asks nobody."""
    return RemoteLLM("127.0.0.1:1", Caller(), "float32", retry_seconds=0)


def attack(tally: Tally, examples: int) -> None:
    def check(rng: random.Random) -> Iterator[str]:
        yield answered(rng.choice(list(ASKS)), rng.choice(HOWS), rng, remote)

    with client() as remote:
        tally.run("answers to a client", examples, check)
