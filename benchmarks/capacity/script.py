"""How many clients a host carries and what a round costs: on paper, and checked by a simulation.

    python -m benchmarks.capacity --measure    # this machine's inputs: host, merging, bytes
    python -m benchmarks.capacity --check      # the calculator against 200 simulated clients
    python -m benchmarks.capacity              # the tables of docs/scale.md

The arithmetic is in model.py, that of bytes in sizes.py. Every input is printed with where it
comes from: a file with measurements, or an assumption and the option that changes it. No GPU was
measured: a GPU host's tokens a second are --utilisation · --gpu-tflops / (4 FLOP · parameters) in
training, twice that in scoring. `--measure` and `--check` write to the JSON file, the tables read
from it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.capacity import check as simulations
from benchmarks.capacity import measure as machine
from benchmarks.capacity import model as paper
from benchmarks.capacity.sizes import Model, Question
from benchmarks.capacity.tables import (
    show_carried,
    show_check,
    show_client,
    show_measured,
    show_rounds,
)
from benchmarks.report import PLACES, ROOT, options_of, table, write_json
from fednano_flwr.config.machine import environment
from fednano_flwr.models.size import count, read_size_config

RESULTS = ROOT / "benchmarks" / "results"
TRAIN_FLOP, SCORE_FLOP = 4, 2  # a parameter and token: forward; and backward to the inputs


@dataclass(frozen=True)
class Assumption:
    """An input that nothing here has measured."""

    option: str
    value: float
    meaning: str


ASSUMPTIONS = (
    Assumption(
        "--gpu-tflops",
        312.0,
        "TFLOP/s of a replica's GPU at its peak in bf16 (A100, its vendor's figure)",
    ),
    Assumption("--utilisation", 0.4, "share of that peak reached"),
    Assumption("--link-gbit", 10.0, "Gbit/s of a host machine's link, each way"),
    Assumption("--replicas-a-machine", 8, "replicas behind one link"),
    Assumption("--uplink-mbit", 20.0, "Mbit/s of a client's uplink"),
    Assumption("--downlink-mbit", 100.0, "Mbit/s of a client's downlink"),
    Assumption("--round-trip-ms", 30.0, "ms there and back between a client and the host"),
    Assumption("--superlink-messages", 100.0, "messages a second that a SuperLink takes"),
    Assumption("--memory-gb", 64.0, "GB of memory where adapters are merged"),
    Assumption(
        "--feature-store-gb", 10.7, "GB of features that the host keeps (the app's defaults)"
    ),
    Assumption("--train-questions", 100, "training questions of a client"),
    Assumption("--test-questions", 30, "test questions of a client"),
    Assumption("--local-epochs", 1, "local epochs; the Fisher pass comes on top"),
    Assumption("--batch-size", 8, "questions in a step"),
    Assumption("--image-tokens", 576, "image tokens of a question"),
    Assumption("--text-tokens", 128, "text tokens of a question"),
)
FLOWER = "measured with flwr 1.41.0 on 2 cores"
KNOWN = {
    "message_seconds": (
        6.1,
        f"s from a message to its reply in deployment, beside the work, {FLOWER}",
    ),
    "process_seconds": (
        3.5,
        f"s to start a client's process and import torch; once a message, {FLOWER}",
    ),
    "superlink_bytes": (
        28e6,
        f"bytes a second through the SuperLink (2 · 300 MB in 27 s less 6.1 s), {FLOWER}",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    file = Path(options.json)
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if options.measure or "measured" not in kept:
        kept["measured"] = measure(options)
        show_measured(kept["measured"])
    if options.check:
        kept["check"] = check(options)
    if "check" in kept:
        show_check(kept["check"])
    made = setup(options, kept["measured"])
    store = 1e9 * options.feature_store_gb
    show_inputs(options, made, file)
    write_json(
        options,
        setting={k: v for k, v in vars(options).items() if k not in (*PLACES, "check")},
        carried=show_carried(made),
        client=show_client(made, store),
        rounds=show_rounds(made, 1e9 * options.memory_gb, store),
        **{key: kept[key] for key in ("measured", "check") if key in kept},
    )


def name_of(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def setup(options: argparse.Namespace, measured: Mapping[str, Any]) -> paper.Setup:
    """LLaVA-1.5-7B on GPUs, its clients on CPUs, from measurements and assumptions."""
    parts = count(read_size_config("llava-1.5-7b").config)
    flops = 1e12 * options.gpu_tflops * options.utilisation
    train = options.host_tokens_per_second or flops / (TRAIN_FLOP * parts.language_model)
    encoder = json.loads((RESULTS / "encoder_cache.json").read_text())
    epochs, samples = encoder["seconds_an_epoch"], encoder["setting"]["samples"]
    known = epochs["later, from memory"] / samples
    return paper.Setup(
        exchange=options.exchange,
        model=Model(
            parts.hidden_size,
            options.rank,
            parts.vocabulary,
            wire_bytes=2,
            in_turns=options.in_turns,
            read_size=parts.connector_reads if options.connector_at == "server" else 0,
        ),
        workload=paper.Workload(
            question=Question(options.image_tokens, options.text_tokens),
            train=paper.Shard.of(int(options.train_questions), int(options.batch_size)),
            test=paper.Shard.of(int(options.test_questions), int(options.batch_size)),
            gradient_passes=int(options.local_epochs) + 1,
            fisher=True,
        ),
        host=paper.Host(
            train,
            train * TRAIN_FLOP / SCORE_FLOP,
            1e9 * options.link_gbit / 8,
            replicas_a_machine=int(options.replicas_a_machine),
        ),
        client=paper.ClientSide(
            up_bytes_per_second=1e6 * options.uplink_mbit / 8,
            down_bytes_per_second=1e6 * options.downlink_mbit / 8,
            round_trip_seconds=options.round_trip_ms / 1e3,
            message_seconds=KNOWN["process_seconds"][0],
            question_seconds=known,
            score_seconds=known,
            encode_seconds=epochs["first (encoder)"] / samples - known,
        ),
        superlink=paper.SuperLink(
            message_seconds=KNOWN["message_seconds"][0],
            messages_per_second=options.superlink_messages,
            bytes_per_second=KNOWN["superlink_bytes"][0],
        ),
        merge=paper.Merge(
            measured["merging"]["seconds_a_number"], measured["merging"]["bytes_a_number"]
        ),
    )


def show_inputs(options: argparse.Namespace, made: paper.Setup, file: Path) -> None:
    """Each input and where it comes from."""
    rows: list[tuple[str, str, str]] = []
    for a in ASSUMPTIONS:
        value = getattr(options, name_of(a.option))
        rows.append((a.meaning, f"{value:g}", f"assumption, `{a.option}`"))
    given = "assumption, `--host-tokens-per-second`"
    derived = "the first two assumptions and the parameters that `fednano size` counts"
    source = given if options.host_tokens_per_second else derived
    rate = f"{made.host.train_tokens_per_second:,.0f}"
    rows.append(("tokens a second of a replica, training", rate, source))
    for value, meaning in KNOWN.values():
        rows.append((meaning.removesuffix(f", {FLOWER}"), f"{value:g}", FLOWER))
    cached, client = "`encoder_cache.json` (one CPU thread)", made.client
    known = "s of a client for a question in a pass, features known"
    rows.append((known, f"{client.question_seconds:.3f}", cached))
    rows.append(("s of a client to encode a picture, once", f"{client.encode_seconds:.1f}", cached))
    for name, value in vars(made.merge).items():
        rows.append((f"merging: {name.replace('_', ' ')}", f"{value:.3g}", f"`{file.name}`"))
    print(table(["input", "value", "from"], rows))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What the tables need of this machine; the rest is in other files."""
    return {
        "setting": {"threads": options.threads, "repeats": options.repeats},
        "environment": environment(),
        "host": [machine.host_rates(n, options.repeats) for n in (1, 4, 16)],
        "merging": machine.merging(options.merged_clients, 4096, options.rank),
        "bytes": machine.checked_bytes(RESULTS / "step_traffic.json"),
    }


def check(options: argparse.Namespace) -> dict[str, Any]:
    changes = [
        f"exchange.kind={options.exchange}",
        f"local-epochs={options.check_epochs}",
        f"batch-size={options.check_batch}",
    ]
    with tempfile.TemporaryDirectory(prefix="fednano-bench-") as folder:
        result = simulations.check(options.few, options.clients, Path(folder), changes)
    return {"environment": environment(), **result}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("capacity", __doc__)
    parser.add_argument("--measure", action="store_true", help="this machine's inputs, anew")
    parser.add_argument("--check", action="store_true", help="two simulations; minutes")
    parser.add_argument("--exchange", default="lowrank", choices=["lowrank", "embeddings"])
    parser.add_argument("--connector-at", default="client", choices=["client", "server"])
    parser.add_argument("--in-turns", action="store_true", help="train A and B in turns (rolora)")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument(
        "--host-tokens-per-second",
        type=float,
        default=0.0,
        metavar="RATE",
        help="of a replica in training; 0: from --gpu-tflops and --utilisation",
    )
    for a in ASSUMPTIONS:
        parser.add_argument(a.option, type=float, default=a.value, help=a.meaning)
    parser.add_argument("--clients", type=int, default=200, help="of --check's prediction")
    parser.add_argument("--few", type=int, default=40, help="clients of --check's small run")
    parser.add_argument("--check-epochs", type=int, default=1)
    parser.add_argument("--check-batch", type=int, default=4)
    parser.add_argument("--merged-clients", type=int, default=60, help="of --measure's merging")
    parser.add_argument("--repeats", type=int, default=30, help="of --measure's timings")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)
