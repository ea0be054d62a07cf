"""A round's seconds over links of known rate, delay and loss, beside what must be waited for.

    python -m benchmarks.slow_link [--small] [--json FILE]

Host and clients have network namespaces of their own (Linux, as root). The language model is a stub
whose pass takes a fixed time, and clients compute nothing, so that what is left is the exchange:
LLaVA-1.5-7B's width, 8 samples of 576 image and 128 text tokens a step, over TLS. A round opens a
connection and trains some steps, with features that the host has; a round that alternates is the
mean of one that trains B and one that trains A. `must` is what a round cannot do without: of one
client its bytes at the link's rate, the host's passes and a round trip a call; of four the larger
of one client's bytes and the passes of all. `in_vain_ms` is what is left, a call.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import ROOT, options_of, table, write_json
from benchmarks.runs import process
from benchmarks.slow_link import work
from benchmarks.slow_link.link import HOST, Quality, carry, why_not
from benchmarks.slow_link.work import Round
from fednano_flwr.exchange.wire.tls import Identity

TARGET = 1.25  # of a round of four clients, against the larger of bytes and computing
ALTERNATING = "alternating"
EXCHANGES = {
    "plain": ("embeddings", "bfloat16"),
    "low-rank": ("lowrank", "bfloat16"),
    ALTERNATING: ("lowrank", "bfloat16"),
    "low-rank, int8": ("lowrank", "int8"),
    "alternating, int8": ("lowrank", "int8"),
}
USUAL = Quality(20, 40)


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    quality: Quality
    rounds: tuple[Round, ...]
    pass_seconds: float
    clients: int = 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("slow_link", __doc__)
    parser.add_argument("--small", action="store_true", help="a narrow model, and few cases")
    parser.add_argument("--steps", type=int, default=6, help="of a round")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args(argv)
    if reason := why_not():
        parser.error(f"no network namespaces or TUN devices here: {reason}")
    sizes = argparse.Namespace(
        hidden_size=4096, rank=64, batch=8, image_tokens=576, text_tokens=128
    )
    if options.small:
        vars(sizes).update(hidden_size=256, image_tokens=64, text_tokens=32)
    options.sizes = vars(sizes)
    rows = []
    with network(4, sizes) as measure:
        for case in cases(options.steps, options.small):
            if options.only in case.name:
                rows.append(row(case, [measure(case, one) for one in case.rounds]))
                print(line(rows[-1]), flush=True)
    write_json(options, target=TARGET, rows=rows)
    heads = ["what", "Mbit/s", "ms", "loss", "clients", "pass ms", "round s", "bytes s", "passes s"]
    print("\n" + table([*heads, "must s", "times", "in vain ms a call"], map(cells, rows)))


def cases(steps: int, small: bool) -> Iterator[Case]:
    """All that is measured."""

    def case(name: str, quality: Quality = USUAL, seconds: float = 0.4, clients: int = 1) -> Case:
        exchange, dtype = EXCHANGES[name]
        calls = 1 if name == "plain" else steps
        kinds = "AB" if name.startswith(ALTERNATING) else [""]
        rounds = tuple(Round("train", calls, exchange, kind, dtype) for kind in kinds)
        return Case(name, quality, rounds, seconds, clients)

    for clients in (1, 4):
        for seconds in (0.05, 0.2, 0.4):
            yield case(ALTERNATING, seconds=seconds, clients=clients)
    if small:
        return
    for mbit in (100, 20, 5):
        for name in EXCHANGES:
            if (name, mbit) != (ALTERNATING, 20):
                yield case(name, replace(USUAL, mbit=mbit))
    for ms in (20, 80):
        for name in ("low-rank", ALTERNATING):
            yield case(name, replace(USUAL, round_trip_ms=ms))
    for changes in (
        {"loss": 0.01},
        {"loss": 0.01, "congestion": "bbr"},
        {"congestion": "bbr"},
        {"idle_restart": False},
    ):
        yield case(ALTERNATING, replace(USUAL, **changes))
    for name, calls in (("features", 1), ("score", 20), ("answer", 20)):
        yield Case(name, USUAL, (Round(name, calls, constant="AB"),), 0.4)


@contextmanager
def network(count: int, sizes: argparse.Namespace) -> Iterator[Any]:
    """A host and clients with a link each; yields what measures a round of a case."""
    with ExitStack() as stack, TemporaryDirectory() as folder:
        keys = Path(folder, "keys")
        make = [sys.executable, str(ROOT / "deploy" / "make_keys.py"), "new", str(keys)]
        subprocess.run([*make, "--host", HOST], check=True, capture_output=True)
        key, certificate, ca = (
            (keys / name).read_bytes() for name in ("server.key", "server.crt", "ca.crt")
        )
        identity = Identity(key, certificate)
        host = stack.enter_context(process(work.host, identity, sizes.hidden_size, count))
        clients = [
            stack.enter_context(process(work.client, node, ca, sizes)) for node in range(count)
        ]
        pids = [pipe.recv() for pipe in (host, *clients)]
        links = stack.enter_context(process(carry, pids[0], pids[1:]))
        links.recv()
        host.send(None)
        place = host.recv()
        for pipe in clients:
            pipe.send(place)
        for pipe in clients:
            pipe.recv()

        def measure(case: Case, one: Round) -> dict[str, float]:
            host.send(case.pass_seconds)
            host.recv()
            links.send(case.quality)
            links.recv()
            start = time.monotonic() + 0.2
            working = clients[: case.clients]
            for pipe in working:
                pipe.send((start, one))
            seconds, up, down = (max(of) for of in zip(*(p.recv() for p in working), strict=True))
            links.send(None)
            host.send(0.0)
            return {
                "seconds": seconds,
                "bytes_up": up,
                "bytes_down": down,
                "busy": host.recv(),
                **{f"link_{name}": value for name, value in links.recv().items()},
            }

        yield measure


def row(case: Case, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """A case's figures, means over its rounds."""
    mean = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    sending = (mean["bytes_up"] + mean["bytes_down"]) / case.quality.rate
    calls = case.rounds[0].calls
    trips = calls * case.quality.round_trip_ms / 1e3
    alone = sending + mean["busy"] + trips
    must = alone if case.clients == 1 else max(sending, mean["busy"])
    return {
        "name": case.name,
        **asdict(case.quality),
        "clients": case.clients,
        "calls": calls,
        "pass_ms": 1e3 * case.pass_seconds,
        **mean,
        "sending": sending,
        "must": must,
        "ratio": mean["seconds"] / must,
        "in_vain_ms": 1e3 * (mean["seconds"] - must) / calls,
    }


def cells(row: dict[str, Any]) -> list[str]:
    beside = "" if row["congestion"] == "cubic" else f", {row['congestion']}"
    beside += "" if row["idle_restart"] else ", no slow start after a pause"
    seconds = (f"{row[name]:.2f}" for name in ("seconds", "sending", "busy", "must", "ratio"))
    numbers = (f"{row[name]:g}" for name in ("mbit", "round_trip_ms", "loss", "clients", "pass_ms"))
    return [row["name"] + beside, *numbers, *seconds, f"{row['in_vain_ms']:.0f}"]


def line(row: dict[str, Any]) -> str:
    return " ".join(cells(row)) + f" late {row['link_late_ms']:.2f} ms, {row['link_dropped']:.0f}"


if __name__ == "__main__":
    main()
