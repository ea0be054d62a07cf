"""Clients that only step: prepared inputs over gRPC, a thread a client, some clients a process."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.runs import process
from fednano_flwr.config import SITES
from fednano_flwr.exchange.embeddings import EmbeddingInputs
from fednano_flwr.exchange.lowrank import LowRankInputs
from fednano_flwr.exchange.protocol import (
    IGNORE,
    Feature,
    Inputs,
    Layout,
    adapted,
)
from fednano_flwr.exchange.wire.client import Caller, RemoteLLM

START_SECONDS = 0.3  # for all processes to hear of a measurement before it begins


@dataclass(frozen=True)
class Preset:
    """A language model and its samples; text lengths differ by a quarter either way.

    Attributes:
        image_tokens: 0 for questions without pictures.
    """

    model: str
    image_tokens: int
    text_tokens: int
    rank: int
    dtype: str


@dataclass(frozen=True)
class Work:
    """What a client sends, prepared: a batch of one sample, its label, its features."""

    inputs: Inputs
    labels: Tensor
    features: tuple[Feature, ...]


def prepare(node: int, preset: Preset, exchange: str, hidden_size: int, vocabulary: int) -> Work:
    """One sample of client `node`, which a seed of its own draws."""
    generator = torch.Generator().manual_seed(node)
    quarter = preset.text_tokens // 4
    text = preset.text_tokens + int(torch.randint(-quarter, quarter + 1, (1,), generator=generator))
    length = preset.image_tokens + text
    sites = torch.full((length,), SITES.index("text"), dtype=torch.int8)
    sites[1 : 1 + preset.image_tokens] = SITES.index("image")
    rows = {s: n for s, n in (("image", preset.image_tokens), ("text", text)) if n}
    z = {s: 0.02 * torch.randn(n, preset.rank, generator=generator) for s, n in rows.items()}
    b = {s: 0.02 * torch.randn(hidden_size, preset.rank, generator=generator) for s in rows}
    picture = 0.02 * torch.randn(preset.image_tokens, hidden_size, generator=generator)
    labels = torch.full((length,), IGNORE)
    labels[-1] = node % vocabulary
    if exchange == "embeddings":
        hidden = 0.02 * torch.randn(length, hidden_size, generator=generator)
        return Work(EmbeddingInputs(adapted(hidden, sites, z, b), Layout((length,))), labels, ())
    ids = torch.randint(0, vocabulary, (text,), generator=generator)
    features = (Feature(f"picture of {node}".encode(), picture),) if len(picture) else ()
    keys = tuple(feature.key for feature in features)
    return Work(LowRankInputs(ids, sites, keys, z, b, Layout((length,))), labels, features)


def client_process(
    pipe: Any, nodes: list[int], addresses: dict[str, str], preset: Preset, exchange: str
) -> None:
    """Some clients of one process; each measurement is answered with the ends of their steps.

    Nothing steps before: both services share one language model, which serves one at a time.
    """
    torch.set_num_threads(1)
    with ExitStack() as stack:
        clients: dict[tuple[str, int], tuple[RemoteLLM, Work]] = {}
        for variant, address in addresses.items():
            for node in nodes:
                remote = stack.enter_context(RemoteLLM(address, Caller(run=1, node=node)))
                info = remote.describe()
                work = prepare(node, preset, exchange, info.hidden_size, info.vocabulary)
                remote.keep_features(work.features)
                clients[variant, node] = remote, work
        pipe.send("ready")
        while (order := pipe.recv()) is not None:
            variant, active, start, end = order
            steps: list[tuple[float, float]] = []
            threads = [
                threading.Thread(
                    target=_step_until, args=(*clients[variant, node], start, end, steps)
                )
                for node in nodes
                if node in active
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pipe.send(steps)


def _step_until(
    remote: RemoteLLM, work: Work, start: float, end: float, steps: list[tuple[float, float]]
) -> None:
    """Steps one after another, each noted as (when it ended, seconds)."""
    time.sleep(max(0.0, start - time.monotonic()))
    while (began := time.monotonic()) < end:
        remote.step(work.inputs, work.labels)
        now = time.monotonic()
        steps.append((now, now - began))


class Clients:
    """Processes that hold the clients between them."""

    def __init__(
        self,
        count: int,
        processes: int,
        addresses: dict[str, str],
        preset: Preset,
        exchange: str,
    ) -> None:
        self._processes = ExitStack()
        self._pipes = []
        for part in range(processes):
            nodes = list(range(part, count, processes))
            started = process(client_process, nodes, addresses, preset, exchange)
            self._pipes.append(self._processes.enter_context(started))
        for pipe in self._pipes:
            pipe.recv()

    def measure(
        self, variant: str, nodes: range, seconds: float, warm_up: float
    ) -> tuple[float, list[float]]:
        """Steps a second of all `nodes` together, and the latencies of these steps.

        Steps that end in the warm-up or after the end are not counted.
        """
        start = time.monotonic() + START_SECONDS
        first, end = start + warm_up, start + warm_up + seconds
        for pipe in self._pipes:
            pipe.send((variant, nodes, start, end))
        steps = [step for pipe in self._pipes for step in pipe.recv()]
        counted = [latency for when, latency in steps if first <= when < end]
        return len(counted) / seconds, counted

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        self._processes.close()
