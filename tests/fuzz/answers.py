"""What a host that means harm, or is broken, could answer a client."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.exchange.protocol import (
    AdaptedBatch,
    Feature,
    FeaturesMissingError,
    GoneError,
    HostRefusedError,
    HostUnreachableError,
    NewToken,
)
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.llm.host import FrozenLLM
from tests.fuzz.messages import fill, mutant, seeds, spoil
from tests.fuzz.running import Tally, run
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
            elif kind == "gone":
                answer.gone = True
            else:
                getattr(answer, kind).SetInParent()
                fill(getattr(answer, kind), self._rng)
        return answer.SerializeToString()

    def close(self) -> None:
        pass


def _batch() -> AdaptedBatch:
    generator = torch.Generator().manual_seed(3)
    is_image = torch.tensor([False, True, True, False])
    return AdaptedBatch(
        hidden=torch.randn(4, SIZE, generator=generator),
        is_image=is_image,
        token_ids=torch.tensor([3, 2, 2, 4]),
        features=(Feature(b"k", torch.ones(2, SIZE)),),
        z={s: torch.randn(2, 1, generator=generator).requires_grad_() for s in ("image", "text")},
        b={
            s: torch.randn(SIZE, 1, generator=generator).requires_grad_() for s in ("image", "text")
        },
        lengths=(4,),
    )


def _train(labels_at: str) -> Callable[[RemoteLLM], object]:
    def ask(remote: RemoteLLM) -> object:
        labels = torch.tensor([-100, -100, -100, 5])
        loss = LowRankExchange(remote, labels_at).loss(_batch(), labels)
        loss.backward()
        return loss

    return ask


def _plain() -> EmbeddingInputs:
    return EmbeddingInputs(torch.ones(4, SIZE), (4,))


ASKS: dict[str, Callable[[RemoteLLM], object]] = {
    "a step, labels at the server": _train("server"),
    "a step, labels at the client": _train("client"),
    "embeddings": lambda remote: remote.step(_plain(), torch.tensor([-100, -100, -100, 5])),
    "scores": lambda remote: remote.score(_plain(), torch.tensor([3]), torch.tensor([1, 2])),
    "tokens": lambda remote: remote.next_tokens(_plain(), torch.tensor([1, 3])),
    "an answer's first token": lambda remote: remote.prefill(_plain()),
    "an answer's next token": lambda remote: remote.decode(
        remote.prefill(_plain()).cache, NewToken(3, torch.ones(1, SIZE))
    ),
    "what runs there": lambda remote: remote.describe(),
    "features": lambda remote: remote.keep_features([Feature(b"k", torch.ones(2, SIZE))]),
}


def answered(draw: tuple[str, str, int], remote: RemoteLLM) -> Iterator[str]:
    """How a client's request ends."""
    ask, how, seed = draw
    remote._host._session = Malicious(random.Random(seed), how)  # type: ignore[assignment]
    try:
        ASKS[ask](remote)
    except DOCUMENTED as error:
        yield type(error).__name__
    else:
        yield "used"


def client() -> RemoteLLM:
    """One that asks nobody."""
    return RemoteLLM("127.0.0.1:1", Caller(), "float32", retry_seconds=0)


def attack(tally: Tally, examples: int, start: int | None) -> None:
    hows = st.sampled_from(("spoiled", "absurd", "cut and flipped"))
    asks: st.SearchStrategy[Any] = st.tuples(st.sampled_from(list(ASKS)), hows, seeds)
    with client() as remote:
        used = partial(answered, remote=remote)
        run(tally, "answers to a client", examples, asks, used, start)
