"""What more clients cost: seconds a round and the server's memory with 5, 50 and 200 clients.

    python -m benchmarks.growth [--clients 5,50,200] [--rounds 2] [-c key=value]

Real `fednano run`s of the demo on the same questions, dealt evenly (`dataset.partitioner=iid`) to
ever more simulated clients, one local epoch, `strategy.name=fedavg`. The server is the process that
hosts the LLM and runs the strategy, which in simulation also drives Ray; its resident memory is
read before the first training round and after the last, and its peak over the whole run. A server
whose memory is flat has the same peak whatever the number of clients, up to 10 %. Seconds of one
run against another's tell the trend and no more: the machine drifts. Prints a table and writes
JSON; `memory_growth` is the largest peak over the smallest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import (
    add_changes,
    integers,
    options_of,
    spread,
    spread_text,
    table,
    write_json,
)
from benchmarks.runs import fednano_run
from fednano_demo.generate import TEST, TRAIN, write_dataset

TARGET = 1.1


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(1)  # here; host and clients have llm.threads and edge.threads
    results = {}
    with tempfile.TemporaryDirectory(prefix="fednano-bench-") as name:
        place = Path(name)
        os.environ["FEDNANO_CACHE"] = str(place / "cache")
        write_dataset(place / "data", options.train, 1, options.test)
        for clients in options.clients:
            lines = fednano_run(
                place / "runs",
                str(clients),
                changes_of(options, place, clients),
                clients,
                options.client_gpus,
            )
            results[str(clients)] = summary(lines, clients)
            print(f"{clients} clients: done", flush=True)
    peaks = [found["server_peak_mb"] for found in results.values()]
    record = write_json(
        options, memory_growth=max(peaks) / min(peaks), target=TARGET, results=results
    )
    print(f"\n{options.train} + {options.test} questions in all, {options.rounds} rounds\n")
    rows = []
    for clients, found in results.items():
        memory = [found[f"server_{when}_mb"] for when in ("before", "after", "peak")]
        sent = [found[f"{kind}_a_client"] / 1e3 for kind in ("round_up", "round_down", "step")]
        rows.append(
            (
                clients,
                spread_text(found["seconds"], 1),
                *(f"{value:.0f}" for value in memory),
                f"↑{sent[0]:.1f} ↓{sent[1]:.1f}",
                f"{sent[2]:.1f}",
            )
        )
    headings = ["clients", "seconds a round", "server MiB before round 1", "after the last"]
    headings += ["peak", "round traffic a client, kB", "step traffic a client, kB"]
    print(table(headings, rows))
    met = "met" if record["memory_growth"] <= TARGET else "missed"
    print(f"\nlargest peak / smallest: {record['memory_growth']:.3f}, at most {TARGET}: {met}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("growth", __doc__)
    parser.add_argument("--clients", type=integers, default=[5, 50, 200], help="joined by commas")
    parser.add_argument("--train", type=int, default=TRAIN, help="questions of all clients")
    parser.add_argument("--test", type=int, default=TEST, help="likewise")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--exchange", choices=("lowrank", "embeddings"), default="lowrank")
    parser.add_argument("--device", default="cpu", help="of clients and host")
    parser.add_argument("--dtype", default="float32", help="likewise")
    parser.add_argument("--client-gpus", type=float, default=0.0, help="as `fednano run`")
    add_changes(parser)
    return parser.parse_args(argv)


def changes_of(options: argparse.Namespace, place: Path, clients: int) -> list[str]:
    """The run config; what `-c` says comes last and wins."""
    return [
        f"dataset.path={place / 'data' / 'scienceqa'}",
        "dataset.partitioner=iid",
        "dataset.min-partition-size=1",
        f"edge.feature-dir={place / f'features-{clients}'}",
        "strategy.name=fedavg",
        f"exchange.kind={options.exchange}",
        f"num-server-rounds={options.rounds}",
        "local-epochs=1",
        *(f"{side}.device={options.device}" for side in ("edge", "llm")),
        *(f"{side}.dtype={options.dtype}" for side in ("edge", "llm")),
        *options.changes,
    ]


def summary(lines: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    """One run in figures; bytes are those of a client in a round of training.

    Raises:
        RuntimeError: clients failed, so that fewer took part than the run was asked for.
    """
    rounds = lines[1:]
    failed = [line["failures"] for line in lines if any(line["failures"].values())]
    if failed or any(len(line["train_questions_per_client"]) != clients for line in rounds):
        raise RuntimeError(f"{clients} clients: not all took part in every round: {failed}")

    def a_client(*keys: str) -> float:
        return statistics.mean(sum(line[key] for key in keys) / clients for line in rounds)

    return {
        "seconds": spread(line["seconds"] for line in rounds),
        "server_before_mb": lines[0]["memory_mb"]["server_process"],
        "server_after_mb": lines[-1]["memory_mb"]["server_process"],
        "server_peak_mb": lines[-1]["peak_memory_mb"]["server_process"],
        "client_process_peak_mb": lines[-1]["peak_memory_mb"]["client_process"],
        "round_up_a_client": a_client("round_bytes_up"),
        "round_down_a_client": a_client("round_bytes_down"),
        "step_a_client": a_client("step_bytes_up", "step_bytes_down"),
        "rounds": [
            {key: line[key] for key in ("round", "seconds", "memory_mb", "peak_memory_mb")}
            for line in lines
        ],
    }


if __name__ == "__main__":
    main()
