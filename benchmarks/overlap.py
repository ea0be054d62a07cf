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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.report import (
    ROOT,
    integers,
    options_of,
    ratios,
    spread,
    spread_text,
    table,
    write_json,
)
from benchmarks.runs import process
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import RunConfig, project
from fednano_flwr.config.machine import cpus
from fednano_flwr.data.load import load_questions
from fednano_flwr.edge import training
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.prefetch import prefetch
from fednano_flwr.edge.questions import Question
from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.protocol import LLM, AdaptedBatch
from fednano_flwr.exchange.wire.client import RemoteLLM
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half

CONFIG = RunConfig.parse(project.defaults(ROOT))
EPOCHS = ("pictures encoded", "features from memory")
TIMES = "times as fast"


class SleepingHost:
    """In place of the host: a loss whose gradient costs nothing, after some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def loss(self, batch: AdaptedBatch, labels: Tensor) -> Tensor:
        loss = batch.embedded().float().mean()
        time.sleep(self.seconds)
        return loss


def one_after_another(items: Iterable[Any], prepare: Callable[[Any], Any]) -> Iterator[Any]:
    return (prepare(item) for item in items)


WAYS = {"one after another": one_after_another, "ahead": prefetch}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(1)
    half = load_edge_half(CONFIG.model.name)
    encoder = load_encoder(ModelCheckpoint(CONFIG.model.name))
    samples = load_questions(CONFIG.dataset).train[: options.questions]
    questions = [encoder.encode(sample) for sample in samples]

    def fresh() -> NanoEdge:
        adapters = build_adapters(half.hidden_size, CONFIG.adapter, seed=0)
        return NanoEdge(half, half.token_table(), adapters, encoder)

    found = {}
    for milliseconds in options.host_ms:
        host = cast(LLM, SleepingHost(1e-3 * milliseconds))
        name = f"stand-in, {milliseconds} ms"
        found[name] = compared(fresh, host, questions, options.repeats)
    with process(real_host) as pipe, RemoteLLM(pipe.recv()) as remote:
        llm = EmbeddingsExchange(remote)
        found["real, another process"] = compared(fresh, llm, questions, options.repeats)
        pipe.send(None)
    write_json(options, batch=CONFIG.batch_size, epochs=found)
    print(f"{len(questions)} questions in batches of {CONFIG.batch_size}, {cpus()} CPU cores\n")
    rows = [
        (name, epoch, *(spread_text(one[way]) for way in WAYS), spread_text(one[TIMES]))
        for name, epochs in found.items()
        for epoch, one in epochs.items()
    ]
    print(table(["host", "epoch", *(f"{way}, s" for way in WAYS), TIMES], rows))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("overlap", __doc__)
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument(
        "--host-ms", type=integers, default=[0, 20, 40], help="of the stand-in, joined by commas"
    )
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(argv)


def compared(
    fresh: Callable[[], NanoEdge], llm: LLM, questions: list[Question], repeats: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of each kind of epoch, in each way, and how many times as fast the second one is.

    Raises:
        SystemExit: the two ways do not end with the same adapters.
    """
    plan = training.TrainingPlan(1, CONFIG.batch_size, CONFIG.learning_rate, 0.0, 1.0)
    times: dict[str, dict[str, list[float]]] = {
        epoch: {way: [] for way in WAYS} for epoch in EPOCHS
    }
    for repeat in range(repeats + 1):
        states = []
        for way, prepared in WAYS.items():
            training.prefetch = prepared  # type: ignore[assignment]
            edge = fresh()
            for seed, epoch in enumerate(EPOCHS):
                started = time.perf_counter()
                training.train(edge, llm, questions, plan, seed)
                if repeat:  # the first one warms up
                    times[epoch][way].append(time.perf_counter() - started)
            states.append(adapter_state(edge.adapters))
        for key, value in states[0].items():
            if not torch.equal(value, states[1][key]):
                raise SystemExit(f"the two ways differ in {key}")
    return {
        epoch: {way: spread(seconds) for way, seconds in ways.items()}
        | {TIMES: ratios(*ways.values())}
        for epoch, ways in times.items()
    }


def real_host(pipe: Any) -> None:
    """The demo's LLM half behind the service, on one CPU thread of another process."""
    torch.set_num_threads(1)
    with serve(FrozenLLM(load_llm_half(CONFIG.model.name))) as address:
        pipe.send(address)
        pipe.recv()


if __name__ == "__main__":
    main()
