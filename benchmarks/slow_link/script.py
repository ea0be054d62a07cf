"""A round's seconds over links of known rate, delay and loss, beside what must be waited for.

    python -m benchmarks.slow_link [--small] [--json FILE]

Host and clients have network namespaces of their own (Linux, as root). The language model is a stub
whose pass takes a fixed time, and clients compute nothing: what is left is the exchange, over TLS,
at LLaVA-1.5-7B's width, with 8 samples of 576 image and 128 text tokens a step. A round opens a
connection and trains some steps, whose features the host has. Alternating rounds train B, then A,
and figures are means over both. "Least" is what a round takes at least: with one client its bytes
at the link's rate, the host's passes, and a round trip a call; with several the larger of one
client's bytes and all clients' passes. What a round takes beyond it, a call, is waited in vain.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
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

    @property
    def calls(self) -> int:
        """Of a round, by each client."""
        return self.rounds[0].calls


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("slow_link", __doc__)
    parser.add_argument("--small", action="store_true", help="a narrow model, and few cases")
    parser.add_argument(
        "--steps", type=int, default=12, help="of the first rounds; a third of the others'"
    )
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
            rows.append(row(case, [measure(case, one) for one in case.rounds]))
            print(*cells(rows[-1]), flush=True)
    write_json(options, target=TARGET, rows=rows)
    heads = ["what", "link", "clients", "calls", "pass, ms", "round, s", "connection", "bytes"]
    print(table([*heads, "passes", "least", "times that", "ms in vain a call"], map(cells, rows)))


def cases(steps: int, small: bool) -> Iterator[Case]:
    """All that is measured."""

    def case(
        name: str,
        quality: Quality = USUAL,
        seconds: float = 0.4,
        clients: int = 1,
        calls: int = steps // 3,
    ) -> Case:
        exchange, dtype = EXCHANGES[name]
        calls = 1 if name == "plain" else calls
        kinds = "AB" if name.startswith(ALTERNATING) else [""]
        rounds = tuple(Round("train", calls, exchange, kind, dtype) for kind in kinds)
        return Case(name, quality, rounds, seconds, clients)

    wide, bbr = {"first_window": 64}, {"congestion": "bbr"}
    usual: dict[str, Any] = {}
    for clients, changes in ((1, usual), (4, usual), (4, wide)):
        for seconds in (0.05, 0.2, 0.4)[: 1 if small else 3]:
            yield case(ALTERNATING, replace(USUAL, **changes), seconds, clients, steps)
    if small:
        return
    for name, calls in (("score", 20), ("answer", 20), ("features", 1)):
        for clients in (1, 4)[: 1 if name == "features" else 2]:
            yield Case(name, USUAL, (Round(name, calls, constant="AB"),), 0.4, clients)
    for mbit in (100, 20, 5):
        for name in EXCHANGES:
            yield case(name, replace(USUAL, mbit=mbit))
        for changes in (wide, bbr):
            yield case(ALTERNATING, replace(USUAL, mbit=mbit, **changes))
    for ms in (20, 80):
        for name in ("low-rank", ALTERNATING):
            yield case(name, replace(USUAL, round_trip_ms=ms))
    for changes in (usual, wide, bbr):
        yield case(ALTERNATING, replace(USUAL, loss=0.01, **changes))


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
            seconds, opened, up, down = (
                max(of) for of in zip(*(p.recv() for p in working), strict=True)
            )
            links.send(None)
            host.send(0.0)
            return {
                "seconds": seconds,
                "opened": opened,
                "bytes_up": up,
                "bytes_down": down,
                "busy": host.recv(),
                **{f"link_{name}": value for name, value in links.recv().items()},
            }

        yield measure


def row(case: Case, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """A case's figures, means over its rounds."""
    for one in found:
        one["sending"] = (one["bytes_up"] + one["bytes_down"]) / case.quality.rate
        trips = case.calls * case.quality.round_trip_ms / 1e3
        alone = one["sending"] + one["busy"] + trips
        one["least"] = alone if case.clients == 1 else max(one["sending"], one["busy"])
    mean = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    in_vain = mean["seconds"] - mean["opened"] - mean["least"]
    return {
        "name": case.name,
        **asdict(case.quality),
        "clients": case.clients,
        "calls": case.calls,
        "pass_ms": 1e3 * case.pass_seconds,
        **mean,
        "ratio": mean["seconds"] / mean["least"],
        "in_vain_ms": 1e3 * in_vain / case.calls,
    }


def cells(row: dict[str, Any]) -> list[str]:
    quality = Quality(**{field.name: row[field.name] for field in fields(Quality)})
    seconds = ("seconds", "opened", "sending", "busy", "least", "ratio")
    return [
        row["name"],
        quality.in_words(),
        *(f"{row[name]:g}" for name in ("clients", "calls", "pass_ms")),
        *(f"{row[name]:.2f}" for name in seconds),
        f"{row['in_vain_ms']:.0f}",
    ]


if __name__ == "__main__":
    main()
