"""Hundreds of small rounds over gRPC with TLS and tokens: does anything grow that should not?

    python -m benchmarks.soak                        # 500 rounds, two clients: some minutes

The server is this process, each client one of its own that lives for the whole run, as in Flower's
simulation. Model and data are tiny and random; updates are packed to int4 with error feedback, so
that clients keep something from round to round; two checkpoints are kept. Every few rounds, when
all are idle, each process counts what it holds: memory of its own (RssAnon), open files, threads,
connections; the server also stored features and open graphs, and files on disk. Exits with 1 if the
second half of the run shows growth, the records of the run's rounds apart, or if a connection is
open after it. Prints a table and writes JSON, with --picture also a picture.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import SHAPES, write_llava
from benchmarks.report import ROOT, options_of, table, write_json
from benchmarks.runs import process
from benchmarks.soak.census import census, files_in
from benchmarks.soak.clients import PipeGrid, serve_messages
from benchmarks.soak.flat import MEMORY, complaints, growth, series, steps
from fednano_demo.generate import write_dataset
from fednano_flwr import server_app
from fednano_flwr.config import RunConfig, project
from tests.certificates import authority, certificate

KB_A_ROUND, MB_IN_ALL = 5.0, 5.0
LEAST = 8  # two in each quarter of the run


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fednano-soak-") as folder:
        started = time.perf_counter()
        rounds, samples, after = soak(Path(folder), options)
        minutes = (time.perf_counter() - started) / 60
    found = complaints(rounds, samples, KB_A_ROUND, MB_IN_ALL)
    found += [f"{who}: connections are left" for who, one in after.items() if one["connections"]]
    write_json(
        options,
        minutes=minutes,
        bounds={"kb_a_round": KB_A_ROUND, "mb": MB_IN_ALL},
        samples=[{"round": number} | one for number, one in zip(rounds, samples, strict=True)],
        after=after,
        complaints=found,
    )
    show(rounds, samples, options.rounds, minutes)
    if options.picture:
        draw(rounds, samples, Path(options.picture))
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("soak", __doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--every", type=int, default=20, help="rounds from one count to the next")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--picture", metavar="FILE", help="also draw memory over rounds")
    options = parser.parse_args(argv)
    if options.rounds <= LEAST * options.every:
        parser.error(f"--rounds {options.rounds}: at least {LEAST} counts are needed to judge")
    return options


Held = dict[str, dict[str, float]]


def soak(folder: Path, options: argparse.Namespace) -> tuple[list[int], list[Held], Held]:
    """Run it in `folder`; the rounds that were counted after, what each process held then, and
    what when all was over."""
    flat = prepare(folder, options)
    run, states = Path(flat["run.dir"]) / flat["run.name"], Path(flat["edge.state-dir"])
    rounds: list[int] = []
    samples: list[Held] = []
    done = 0

    def count() -> Held:
        for pipe in pipes:
            pipe.send(None)
        held = {f"client {number}": pipe.recv() for number, pipe in enumerate(pipes)}
        files = {"files_of_run": files_in(run), "files_of_clients": files_in(states)}
        return {"server": {**census(), **files}, **held}

    def before_training() -> None:
        nonlocal done
        if done and done % options.every == 0:
            rounds.append(done)
            samples.append(count())
        done += 1

    with ExitStack() as stack:
        arguments = (serve_messages, flat, options.clients)
        pipes = [stack.enter_context(process(*arguments)) for _ in range(options.clients)]
        server_app.federate(PipeGrid(flat, pipes, before_training), 1, RunConfig.parse(flat))
        return rounds, samples, count()


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write model, data and certificates; the run config."""
    write_llava(folder / "model", SHAPES["tiny"])
    write_dataset(folder / "data", train=8 * options.clients, val=1, test=4 * options.clients)
    ca = authority()
    cert, key = certificate(ca).write(folder / "service")
    vouching, _ = ca.write(folder / "ca")
    return {
        **project.defaults(ROOT),
        "model.name": str(folder / "model"),
        "dataset.path": str(folder / "data" / "scienceqa"),
        "dataset.partitioner": "iid",
        "num-server-rounds": options.rounds,
        "local-epochs": 1,
        "batch-size": 4,
        "strategy.name": "fednano-ef",
        "upload.adapters": "int4",
        "run.dir": str(folder / "runs"),
        "run.name": "soak",
        "run.keep-checkpoints": 2,
        "llm.threads": 1,
        "llm.tls-cert": cert,
        "llm.tls-key": key,
        "exchange.ca-cert": vouching,
        "edge.feature-dir": str(folder / "features"),
        "edge.state-dir": str(folder / "clients"),
    }


def show(rounds: Sequence[int], samples: Sequence[Held], total: int, minutes: float) -> None:
    half = len(samples) // 2
    print(f"\n{total} rounds in {minutes:.1f} minutes\n")
    rows = []
    for who, held in samples[-1].items():
        for what in held:
            values = [one[who][what] for one in samples]
            judged = series(samples, who, what)[half:]
            a_round = steps(rounds[half:], judged)
            slope = f"{1e3 * a_round:+.2f} KB" if what.endswith("_mb") else f"{a_round:+.3f}"
            ends = (f"{values[i]:.1f}" for i in (0, half, -1))
            rows.append((who, what, *ends, slope, f"{growth(judged):+.2f}"))
    at = [f"round {rounds[i]}" for i in (0, half, -1)]
    print(table(["process", "what", *at, "a round, 2nd half", "2nd half in all"], rows))
    print("growth of own_mb is without that of history_mb, the records of the run's rounds")


def draw(rounds: Sequence[int], samples: Sequence[Held], picture: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for who in samples[-1]:
        axes.plot(rounds, [one[who][MEMORY] for one in samples], label=who)
    axes.set(xlabel="round", ylabel="memory of its own, MB", ylim=(0, None))
    axes.legend()
    figure.savefig(picture, dpi=150)
    plt.close(figure)
