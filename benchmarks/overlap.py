"""Client work that hides behind the host's: seconds of training, one step after another and ahead.

    python -m benchmarks.overlap [--questions 192] [--host-ms 0,20,40]

The demo's model and questions, one client on one CPU thread. The host is a stand-in that sleeps and
answers with a constant gradient, as a host on another machine does for this one's CPU; and then the
real one in a process of its own, over gRPC on loopback. An epoch either encodes all pictures or
finds them in memory. Both ways take turns, and both end with the same adapters, which is checked.
Needs neither flwr nor ray. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fednano_flwr.command import project
from fednano_flwr.config import RunConfig
from fednano_flwr.data.registry import load_questions
from fednano_flwr.edge import training
from fednano_flwr.edge.adapters import adapter_state, build_adapters
from fednano_flwr.edge.ahead import ahead
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.questions import Question, load_encoder
from fednano_flwr.exchange.client import RemoteLLM
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.protocol import LLM, AdaptedBatch
from fednano_flwr.exchange.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import Checkpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half

ROOT = Path(__file__).resolve().parents[1]
CONFIG = RunConfig.parse(project.defaults(ROOT))
EPOCHS = ("pictures encoded", "features from memory")


class SleepingHost:
    """In place of the host: a loss whose gradient costs nothing, after some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        loss = batch.embedded().embeds.float().mean()
        time.sleep(self.seconds)
        return loss

    def score(self, batch: AdaptedBatch, positions: Tensor, candidates: Tensor) -> Tensor:
        raise NotImplementedError

    def next_tokens(self, batch: AdaptedBatch, positions: Tensor) -> Tensor:
        raise NotImplementedError


def one_after_another(items: Iterable[Any], prepare: Callable[[Any], Any]) -> Iterator[Any]:
    return (prepare(item) for item in items)


WAYS = {"one after another": one_after_another, "ahead": ahead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--host-ms", default="0,20,40", help="of the stand-in, a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/overlap.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    half = load_edge_half(CONFIG.model.name)
    encoder = load_encoder(Checkpoint(CONFIG.model.name))
    samples = load_questions(CONFIG.dataset).train[: options.questions]
    questions = [encoder.encode(sample) for sample in samples]

    def fresh() -> NanoEdge:
        adapters = build_adapters(half.hidden_size, CONFIG.adapter, seed=0)
        return NanoEdge(half, half.token_table(), adapters, encoder)

    rows = {}
    for name in options.host_ms.split(","):
        host = SleepingHost(1e-3 * float(name))
        rows[f"stand-in, {name} ms"] = compared(fresh, host, questions, options.repeats)
    with closing(RealHost()) as real, RemoteLLM(real.address) as remote:
        llm = EmbeddingsExchange(remote)
        rows["real, another process"] = compared(fresh, llm, questions, options.repeats)

    cores = len(os.sched_getaffinity(0))
    print(f"{len(questions)} questions in batches of {CONFIG.batch_size}, {cores} CPU cores\n")
    print("| host | epoch | one after another, s | ahead, s | times |\n|---|---|---|---|---|")
    for name, epochs in rows.items():
        for epoch, (turns, overlapped) in epochs.items():
            print(
                f"| {name} | {epoch} | {turns:.2f} | {overlapped:.2f} | {turns / overlapped:.2f} |"
            )
    out = ROOT / options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    setting = vars(options) | {"batch": CONFIG.batch_size, "cores": cores}
    out.write_text(json.dumps({"setting": setting, "seconds_an_epoch": rows}, indent=2) + "\n")


def compared(
    fresh: Callable[[], NanoEdge], llm: LLM, questions: list[Question], repeats: int
) -> dict[str, list[float]]:
    """Median seconds of each kind of epoch, in each way."""
    plan = training.TrainingPlan(1, CONFIG.batch_size, CONFIG.learning_rate, 0.0, 1.0)
    times: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats + 1):
        states = []
        for way, prepared in WAYS.items():
            training.ahead = prepared  # type: ignore[assignment]
            edge = fresh()
            for seed, epoch in enumerate(EPOCHS):
                started = time.perf_counter()
                training.train(edge, llm, questions, plan, seed)
                if repeat:  # the first one warms up
                    times.setdefault((epoch, way), []).append(time.perf_counter() - started)
            states.append(adapter_state(edge.adapters))
        for key, value in states[0].items():
            if not torch.equal(value, states[1][key]):
                raise SystemExit(f"the two ways differ in {key}")
    return {epoch: [statistics.median(times[epoch, way]) for way in WAYS] for epoch in EPOCHS}


class RealHost:
    """The demo's LLM half behind the service, on one CPU thread of another process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        self.address: str = self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Any) -> None:
    torch.set_num_threads(1)
    with serve(FrozenLLM(load_llm_half(CONFIG.model.name))) as address:
        pipe.send(address)
        pipe.recv()


if __name__ == "__main__":
    main()
