"""One language model, many clients: steps a second with and without passes that clients share.

    python -m benchmarks.many_clients --small              # CPU: the demo's model
    python -m benchmarks.many_clients --preset 7b --device cuda
    python -m benchmarks.many_clients --preset real --model FOLDER

Each client has a thread, and some clients a process: every one sends a training step of one sample
over gRPC, again and again, with inputs prepared before (no edge work). The variants take turns.
The 7b preset is LLaVA-1.5-7B's language model with random weights; FOLDER has a model with 16 image
tokens, as `python -m fednano_demo.real.build` makes it. Also what a client that is
alone waits for a step. Needs neither flwr nor ray. Prints tables and writes JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks.crowd import Clients, Preset
from benchmarks.models import SHAPES, random_half
from benchmarks.report import (
    name_of,
    options_of,
    ratios,
    spread,
    spread_text,
    table,
    write_json,
)
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.llm.feature_store import FeatureStore
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.llm.queued import QueuedLLM
from fednano_flwr.models.llm_half import LLMHalf, load_llm_half

ALONE, SHARED = "one request a pass", "shared passes"
VARIANTS = (ALONE, SHARED)
TARGET = 4.0  # of a GPU
PRESETS = {
    "small": Preset("package:fednano_demo/model", 9, 12, 16, "float32"),
    "real": Preset("", 16, 64, 16, "float32"),
    "7b": Preset("llava-1.5-7b, random weights", 576, 128, 64, "bfloat16"),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    if options.preset == "7b":
        shape = replace(SHAPES["7b"], layers=options.layers)
        half = random_half(shape, options.device, preset.dtype)
    else:
        preset = replace(preset, model=options.model or preset.model)
        half = load_llm_half(preset.model, options.device, preset.dtype)
    found = measure(half, preset, options)
    show(write_json(options, device=name_of(options.device), **found), options)


def measure(half: LLMHalf, preset: Preset, options: argparse.Namespace) -> dict[str, Any]:
    """Both variants, taking turns: with all clients, then with one of them.

    Args:
        options: has the most tokens of a pass afterwards.
    """
    rates: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    latencies: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    lone: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with running(half, preset, options) as clients:
        for repeat in range(options.repeats):
            turns = VARIANTS if repeat % 2 == 0 else VARIANTS[::-1]
            for variant in turns:
                everyone = range(options.clients)
                rate, taken = clients.measure(variant, everyone, options.seconds, options.warm_up)
                rates[variant].append(rate)
                latencies[variant] += taken
            for variant in turns:
                # The host expects who has asked within a second: let it forget the others.
                time.sleep(1.2)
                _, taken = clients.measure(variant, range(1), options.seconds, options.warm_up)
                lone[variant] += taken
    return {
        "preset": vars(preset),
        "parameters": half.size,
        "steps_per_second": {variant: spread(rates[variant]) for variant in VARIANTS},
        "ratio": ratios(rates[SHARED], rates[ALONE]),
        "latency_ms": {
            f"{options.clients} clients": {v: latency(latencies[v]) for v in VARIANTS},
            "1 client": {v: latency(lone[v]) for v in VARIANTS},
        },
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("many_clients", __doc__)
    parser.add_argument("--preset", default="small", choices=list(PRESETS))
    parser.add_argument("--small", dest="preset", action="store_const", const="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=32, help="of the 7b preset")
    parser.add_argument("--model", help="of the real preset, as in model.name")
    parser.add_argument("--exchange", default="lowrank", choices=["lowrank", "embeddings"])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--processes", type=int, default=4, help="that hold the clients")
    parser.add_argument("--batch-tokens", type=int, default=0, help="0: room for all clients")
    parser.add_argument("--batch-wait", type=float, default=0.002, help="seconds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds before each")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's, of the host")
    options = parser.parse_args(argv)
    if options.preset == "real" and not options.model:
        parser.error("--preset real needs --model")
    return options


@contextmanager
def running(half: LLMHalf, preset: Preset, options: argparse.Namespace) -> Iterator[Clients]:
    """Clients of both variants' services around one language model."""
    longest = preset.image_tokens + preset.text_tokens + preset.text_tokens // 4
    options.batch_tokens = options.batch_tokens or options.clients * longest
    with ExitStack() as stack:
        addresses = {}
        for variant, batch_tokens in ((ALONE, 0), (SHARED, options.batch_tokens)):
            host = FrozenLLM(half, features=FeatureStore(2**32))
            service = stack.enter_context(
                QueuedLLM(host, batch_tokens=batch_tokens, batch_wait=options.batch_wait)
            )
            addresses[variant] = stack.enter_context(serve(service))
        clients = Clients(options.clients, options.processes, addresses, preset, options.exchange)
        with closing(clients):
            yield clients


def latency(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile, in ms."""
    last = sorted(seconds)[int(0.95 * (len(seconds) - 1))]
    return {"median": 1e3 * statistics.median(seconds), "95 %": 1e3 * last}


def show(record: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"{record['preset']['model']} ({record['parameters']:,} parameters) on "
        f"{record['device']}; {options.clients} clients in {options.processes} "
        f"processes, one sample a step, {options.exchange}\n"
    )
    crowd, alone = record["latency_ms"]
    rows = []
    for variant in VARIANTS:
        taken = [record["latency_ms"][name][variant] for name in (crowd, alone)]
        cells = [f"{one['median']:.1f}, {one['95 %']:.1f}" for one in taken]
        rows.append((variant, spread_text(record["steps_per_second"][variant], 1), *cells))
    headings = ["host", "steps a second, median (range)", f"ms a step, {crowd}: median, 95 %"]
    print(table([*headings, alone], rows))
    lone = record["latency_ms"][alone]
    more = lone[SHARED]["median"] - lone[ALONE]["median"]
    print(
        f"\nshared passes: {spread_text(record['ratio'])} times as many steps a second\n"
        f"a client alone waits {more:+.2f} ms longer (median); batch wait "
        f"{1e3 * options.batch_wait:g} ms"
    )


if __name__ == "__main__":
    main()
