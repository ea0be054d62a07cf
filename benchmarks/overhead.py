"""What federation adds: a steady round of 5 simulated clients against the unsplit model alone.

    python -m benchmarks.overhead [--llm-threads 2] [-c key=value]

A random LLaVA whose LLM has about 25 M parameters, demo questions, `fednano run` with
`strategy.name=fedavg` (no Fisher pass). The other side is transformers' own unsplit model in this
process: the same adapters, optimizer, batches and steps on the same samples, and the same test
questions scored, so a whole round is compared with its work. Frozen image features are kept in
memory on both sides, and the vision encoder has no part in the rounds that count (from round 2 on).

Both sides have all of the machine: the central one as PyTorch threads, the federated one as as many
clients at once (one thread each) beside a host of `--llm-threads`. Central rounds are measured
before and after each run, and a run's ratio is to those next to it. Prints where a round's seconds
go, writes JSON; `ratio` is the median over runs. About 6 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import heapq
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import add_model, put_model
from benchmarks.report import (
    ROOT,
    add_changes,
    name_of,
    options_of,
    spread,
    spread_text,
    table,
    waiting_for,
    write_json,
)
from benchmarks.runs import fednano_run
from benchmarks.whole import WholeModel
from fednano_demo.generate import write_dataset
from fednano_flwr.adapters.site import build_adapters
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.config import RunConfig
from fednano_flwr.config.machine import cpus
from fednano_flwr.edge.client import Client
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.scoring import score_questions
from fednano_flwr.edge.shard import ClientSpec, EncodedShard
from fednano_flwr.edge.training import TrainingPlan, train
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.preflight import run_config

FIRST_STEADY = 2  # round 0 encodes test pictures, round 1 those to train on
TARGET = 1.15


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    with tempfile.TemporaryDirectory(prefix="fednano-bench-") as name:
        place = Path(name)
        os.environ["FEDNANO_CACHE"] = str(place / "cache")
        size = put_model(options, place / "model")
        write_dataset(place / "data", options.train, 1, options.test)
        changes = changes_of(options, place)
        config = run_config(ROOT, changes, options.clients, Path.cwd())
        torch.set_num_threads(1)
        shards = [
            Client(config, ClientSpec(k, options.clients)).shard for k in range(options.clients)
        ]
        torch.set_num_threads(options.threads)
        whole = WholeModel(place / "model", options.device, options.dtype)
        adapters = build_adapters(whole.hidden_size, config.adapter, config.seed)
        edge = whole.edge(adapters, load_encoder(ModelCheckpoint(config.model.name)))
        finish = waiting_for(options.device)

        def central() -> list[float]:
            taken = []
            for repeat in range(options.central_rounds):
                started = time.perf_counter()
                central_round(whole, edge, shards, config, repeat + 1)
                finish()
                taken.append(time.perf_counter() - started)
            return taken

        central_round(whole, edge, shards, config, 0)  # fills the features
        between, rounds = [central()], []
        for run in range(options.runs):
            lines = fednano_run(
                place / "runs", str(run), changes, options.clients, options.client_gpus
            )
            rounds.append(steady(lines, shards))
            between.append(central())
    show(options, config, size, between, rounds)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("overhead", __doc__)
    parser.add_argument("--clients", type=int, default=5)
    add_model(parser)
    parser.add_argument("--train", type=int, default=800, help="questions of all clients")
    parser.add_argument("--test", type=int, default=200, help="likewise")
    parser.add_argument("--epochs", type=int, default=1, help="local epochs of a round")
    parser.add_argument("--rounds", type=int, default=4, help=f"{FIRST_STEADY} and later count")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--central-rounds", type=int, default=2, help="between two runs")
    parser.add_argument("--threads", type=int, default=cpus(), help="of the central side")
    parser.add_argument("--llm-threads", type=int, default=cpus(), help="of the host")
    parser.add_argument("--exchange", choices=("lowrank", "embeddings"), default="lowrank")
    parser.add_argument("--device", default="cpu", help="of clients, host and central side")
    parser.add_argument("--dtype", default="float32", help="likewise")
    parser.add_argument("--client-gpus", type=float, default=0.0, help="as `fednano run`")
    add_changes(parser)
    options = parser.parse_args(argv)
    if options.rounds < FIRST_STEADY:
        parser.error(f"--rounds {options.rounds}: at least {FIRST_STEADY}, the first that counts")
    return options


def changes_of(options: argparse.Namespace, place: Path) -> list[str]:
    """The run config of the federated side; what `-c` says comes last and wins."""
    return [
        f"model.name={place / 'model'}",
        f"dataset.path={place / 'data' / 'scienceqa'}",
        "strategy.name=fedavg",
        f"exchange.kind={options.exchange}",
        f"num-server-rounds={options.rounds}",
        f"local-epochs={options.epochs}",
        f"llm.threads={options.llm_threads}",
        *(f"{side}.device={options.device}" for side in ("edge", "llm")),
        *(f"{side}.dtype={options.dtype}" for side in ("edge", "llm")),
        *options.changes,
    ]


def central_round(
    whole: WholeModel,
    edge: NanoEdge,
    shards: Sequence[EncodedShard],
    config: RunConfig,
    server_round: int,
) -> None:
    """All clients' training, batch by batch as they do it, and all their scoring, here."""
    plan = TrainingPlan(
        local_epochs=config.local_epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    for partition, shard in enumerate(shards):
        seed = derive_seed(Purpose.TRAINING, config.seed, server_round, partition)
        train(edge, whole, shard.train, plan, seed)
    for shard in shards:
        tokens = config.max_answer_tokens
        score_questions(edge, whole, shard.test, config.batch_size, max_answer_tokens=tokens)


def steady(
    lines: Sequence[dict[str, Any]], shards: Sequence[EncodedShard]
) -> list[dict[str, float]]:
    """Where the seconds of each round that counts went.

    Raises:
        RuntimeError: the run's clients had other samples, or encoded pictures in these rounds.
    """
    sizes = {str(k): len(shard.train) for k, shard in enumerate(shards)}
    found = []
    for line in lines[FIRST_STEADY:]:
        if line["train_questions_per_client"] != sizes or line["features"]["encoded"]:
            raise RuntimeError(f"round {line['round']} did other work than the central side")
        seconds = line["client_seconds"]
        chains = chain(seconds["train"]) + chain(seconds["evaluate"])
        clients, waiting = sum(seconds["train"] + seconds["evaluate"]), seconds["waiting_for_llm"]
        found.append(
            {
                "seconds": line["seconds"],
                "chain": chains,
                "flower": line["seconds"] - chains,
                "clients": clients,
                "waiting_for_llm": waiting,
                "clients_own": clients - waiting,
                "step_mb": (line["step_bytes_up"] + line["step_bytes_down"]) / 1e6,
            }
        )
    return found


def chain(seconds: Sequence[float]) -> float:
    """How long work takes that is given out in order, to as many at once as there are CPUs."""
    slots = [0.0] * cpus()
    for one in seconds:
        heapq.heappush(slots, heapq.heappop(slots) + one)
    return max(slots)


def show(
    options: argparse.Namespace,
    config: RunConfig,
    size: int,
    between: list[list[float]],
    rounds: list[list[dict[str, float]]],
) -> None:
    found = []
    for index, run in enumerate(rounds):
        central = statistics.median(between[index] + between[index + 1])
        found.append(statistics.median(one["seconds"] for one in run) / central)
    counted = [one for run in rounds for one in run]
    central_seconds = spread(second for some in between for second in some)
    profile = {key: spread(one[key] for one in counted) for key in counted[0]}
    record = write_json(
        options,
        device=name_of(options.device),
        llm_parameters=size,
        ratio=statistics.median(found),
        ratios=found,
        target=TARGET,
        central_seconds=central_seconds,
        federated=profile,
        central_rounds=between,
        federated_rounds=rounds,
    )
    print(
        f"LLM of {size / 1e6:.1f} M parameters, {record['device']}, {options.dtype}; "
        f"{options.clients} clients, {options.train} + {options.test} questions, "
        f"{config.local_epochs} epoch(s); central {options.threads} thread(s), host "
        f"{config.llm.threads}, exchange {config.exchange.kind}\n"
    )
    names = {
        "seconds": "a steady round",
        "chain": "of it its slowest chain of clients",
        "flower": "of it Flower's own (the rest)",
        "clients": "all clients together",
        "waiting_for_llm": "of it waiting for the host",
        "clients_own": "of it their own computing",
    }
    rows = [("central: the same work", spread_text(central_seconds))]
    rows += [(text, spread_text(profile[key])) for key, text in names.items()]
    print(table(["seconds", "median (least–most)"], rows))
    print(
        f"\nratio {spread_text(spread(found))} of {len(found)} run(s), "
        f"target at most {TARGET}: {'met' if record['ratio'] <= TARGET else 'missed'}"
    )


if __name__ == "__main__":
    main()
