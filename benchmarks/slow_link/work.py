"""What runs at both ends of the links: a host that computes nothing, and its clients."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.slow_link.link import HOST, own_network
from benchmarks.step_traffic import VOCABULARY, make_batch, with_constant
from benchmarks.stub_half import stub_half
from fednano_flwr.exchange.at_host import AtHost
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.protocol import IGNORE, Generated, Inputs, Layout, NewTokens
from fednano_flwr.exchange.registry import EXCHANGES
from fednano_flwr.exchange.wire.auth import Tokens
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import Identity
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.jobs import Sample
from fednano_flwr.llm.queued import QueuedLLM

RUN, PHASE = 1, "train"
CANDIDATES = 4
TOKEN_SHARE = 0.1
"""Of a training pass, for a token of a batch's answers."""


class FixedPass(FrozenLLM):
    """A host whose passes take a fixed time: a batch is answered with itself as its gradient.

    Attributes:
        seconds: of a training step; half of that for a batch that is scored.
        busy: seconds of all passes.
    """

    seconds = 0.0
    busy = 0.0

    def serve(self, samples: Sequence[Sample]) -> None:
        """See `FrozenLLM.serve`; of one request, which is all that the queue gives."""
        job = samples[0].job
        self._compute(1.0 if job.trains else 0.5)
        job.future.set_result(
            (0.0, job.inputs.leaves) if job.trains else torch.zeros(len(job.positions), 4)
        )

    def prefill(self, cache: int, inputs: Inputs, owner: bytes = b"") -> Generated:
        """See `LLMService.prefill`."""
        self._compute(0.5)
        return Generated(cache, torch.zeros(len(inputs.layout.lengths), dtype=torch.int64))

    def decode(self, cache: int, tokens: NewTokens, owner: bytes = b"") -> Generated:
        """See `LLMService.decode`."""
        self._compute(TOKEN_SHARE)
        return Generated(cache, tokens.ids)

    def _compute(self, share: float) -> None:
        began = time.monotonic()
        time.sleep(share * self.seconds)
        self.busy += time.monotonic() - began


def host(pipe: Any, identity: Identity, width: int, nodes: int) -> None:
    """A process with a network of its own; it is asked for a pass's seconds, and answers with those
    of all passes since it was asked before.
    """
    pipe.send(own_network())
    pipe.recv()  # once there are links
    half = stub_half(width, VOCABULARY, torch.bfloat16)
    stub, tokens = FixedPass(half, features=FeatureStore(2**31)), Tokens(RUN)
    with (
        QueuedLLM(stub) as queue,
        serve(queue, HOST, tokens=tokens, identity=identity) as address,
        tokens.open(1, PHASE, AtHost()) as token,
        suppress(EOFError),
    ):
        pipe.send((address, [token(node) for node in range(nodes)]))
        while True:
            stub.seconds = pipe.recv()
            pipe.send(stub.busy)
            stub.busy = 0.0


@dataclass(frozen=True)
class Round:
    """What a client does in a round, over a connection of its own.

    Attributes:
        work: a name of `WORK`.
        calls: how often.
        constant: factors that are not trained.
        dtype: on the wire.
    """

    work: str
    calls: int
    exchange: str = "lowrank"
    constant: str = ""
    dtype: str = "bfloat16"


def client(pipe: Any, node: int, ca: bytes, sizes: Namespace) -> None:
    """A process with a network of its own that carries out rounds, each (start, `Round`).

    Answers with the seconds since the start, those of them until the host had described itself,
    and the bytes up and down.
    """
    torch.set_num_threads(1)
    pipe.send(own_network())
    address, tokens = pipe.recv()
    caller = Caller(RUN, node, 1, PHASE, tokens[node])
    low, labels = make_batch(sizes, torch.bfloat16)
    # The client's own computing is left out: z, or the adapted embeddings, are there.
    plain = replace(low, hidden=low.hidden.clone().requires_grad_(), z={}, b={})
    pipe.send(None)
    with suppress(EOFError):
        while True:
            start, work = pipe.recv()
            batch = plain if work.exchange == "embeddings" else with_constant(low, work.constant)
            time.sleep(max(0.0, start - time.monotonic()))
            with RemoteLLM(address, caller, work.dtype, timeout=900, ca=ca) as remote:
                remote.describe()
                opened = time.monotonic() - start
                exchange = EXCHANGES[work.exchange](remote)
                WORK[work.work](exchange, batch, labels, work.calls)
                seconds = time.monotonic() - start
                traffic = remote.traffic
                pipe.send((seconds, opened, traffic.bytes_up, traffic.bytes_down))


def _train(exchange: Exchange, batch: Any, labels: torch.Tensor, calls: int) -> None:
    for _ in range(calls):
        exchange.loss(batch, labels).backward()


def _score(exchange: Exchange, batch: Any, labels: torch.Tensor, calls: int) -> None:
    asked = (labels != IGNORE).nonzero().squeeze(1)
    for _ in range(calls):
        exchange.score(batch, asked, torch.arange(CANDIDATES))


def _send_features(exchange: Exchange, batch: Any, labels: torch.Tensor, calls: int) -> None:
    exchange.prepare(batch)


def _answer(exchange: Exchange, batch: Any, labels: torch.Tensor, calls: int) -> None:
    count = len(batch.layout.lengths)
    ids = torch.zeros(count, dtype=torch.int64)
    new = replace(batch, sites=1 + ids.to(torch.int8), token_ids=ids, layout=Layout((1,) * count))
    cache = exchange.prefill(batch, calls).cache
    for _ in range(calls - 1):
        cache = exchange.decode(cache, torch.arange(count), new).cache
    exchange.release(cache)


WORK: Mapping[str, Callable[..., None]] = {
    "train": _train,
    "score": _score,
    "features": _send_features,
    "answer": _answer,
}
