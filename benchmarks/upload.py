"""What packing an upload costs in accuracy and time: rounding errors of the demo's own updates.

    python -m benchmarks.upload [--rounds 2] [--json benchmarks/results/upload.json]

Runs the demo in this process with plain uploads, packs every client's update in each way, and
compares; no feedback, so each error is that of one rounding. Then times one update of a larger
model's size (`--hidden-size`, `--rank`). Prints tables and writes JSON.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from flwr.app import Message
from torch import Tensor

from benchmarks.report import ROOT, add_changes, in_turns, options_of, spread, table, write_json
from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.pack_fisher import pack_fisher, unpack_fisher
from fednano_flwr.adapters.packing import (
    BITS,
    State,
    flatten,
    pack_adapters,
    shapes_of,
    unpack_adapters,
)
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.base.int8 import BLOCK
from fednano_flwr.config import Adapter, RunConfig
from fednano_flwr.in_process import InProcessGrid
from fednano_flwr.preflight import run_config
from fednano_flwr.rounds.records import FISHER, from_arrays

Update = tuple[State, State, State]  # adapters sent, trained, Fisher diagonals


class Listening(InProcessGrid):
    """Keeps every update that clients reply."""

    def __init__(self, config: RunConfig, clients: int) -> None:
        super().__init__(client_app.app, config.flat(), clients)
        self.updates: list[Update] = []

    def answer(self, message: Message) -> list[Message]:
        replies = super().answer(message)
        for reply in replies:
            arrays = None if reply.has_error() else reply.content.array_records.get("arrays")
            if arrays:
                sent = from_arrays(message.content.array_records["arrays"])
                self.updates.append((sent, from_arrays(arrays), from_arrays(arrays, FISHER)))
        return replies


def demo_updates(changes: Sequence[str], rounds: int, clients: int) -> list[Update]:
    """Every client's update of each round of a run."""
    with tempfile.TemporaryDirectory(prefix="fednano-bench-") as folder:
        own = [f"run.dir={folder}", f"edge.state-dir={folder}", f"num-server-rounds={rounds}"]
        own += ["upload.adapters=float32", "upload.fisher=float32"]
        asked = ["strategy.name=fednano-ef", *changes, *own]
        config = run_config(ROOT, asked, clients, Path.cwd())
        grid = Listening(config, clients)
        server_app.federate(grid, 1, config)
    return grid.updates


def adapter_errors(updates: Sequence[Update], kind: str) -> dict[str, float]:
    """RMS error of the change, relative to the change's own; spread over the updates."""
    errors = []
    for sent, theta, _ in updates:
        packed = pack_adapters(theta, sent, kind)
        change = flatten(theta) - flatten(sent)
        errors.append((flatten(packed.residual).norm() / change.norm()).item())
    return spread(errors)


def fisher_errors(updates: Sequence[Update]) -> dict[str, float]:
    """|log2 x̂ − log2 x| of all values above zero, and the share of zeros."""
    off, zeros = [], []
    for _, _, fisher in updates:
        shapes = shapes_of(fisher)
        back = flatten(unpack_fisher(pack_fisher(fisher), shapes))
        exact = flatten(fisher)
        zeros.append(exact == 0)
        off.append((back.log2() - exact.log2()).abs()[exact > 0])
    errors = torch.cat(off)
    return {
        "mean": errors.mean().item(),
        "p99": errors.quantile(0.99).item(),
        "max": errors.max().item(),
        "zeros": torch.cat(zeros).float().mean().item(),
    }


def widths(updates: Sequence[Update]) -> dict[str, float]:
    """log2 of largest over smallest value above zero in a block of Fisher values."""
    found = []
    for _, _, fisher in updates:
        values = flatten(fisher)
        blocks = values[: values.numel() // BLOCK * BLOCK].view(-1, BLOCK)
        low = blocks.masked_fill(blocks == 0, torch.inf).amin(dim=1)
        width = (blocks.amax(dim=1) / low).log2()
        found += width[blocks.amax(dim=1) > 0].tolist()
    return spread(found)


def large_update(hidden_size: int, rank: int) -> Update:
    """A made-up one of this size."""
    adapter = Adapter(rank, 2.0 * rank, 0.0, "image,text")
    sent = adapter_state(build_adapters(hidden_size, adapter, seed=0))
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    theta = {name: value + 1e-3 * noise(value) for name, value in sent.items()}
    return sent, theta, {name: noise(value) ** 2 for name, value in sent.items()}


def timings(large: Update, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds to pack and to unpack each kind."""
    sent, theta, fisher = large
    shapes = shapes_of(sent)
    work: dict[str, Callable[[], object]] = {}
    for kind in BITS:
        data = pack_adapters(theta, sent, kind).data
        work[f"pack {kind}"] = partial(pack_adapters, theta, sent, kind)
        work[f"unpack {kind}"] = partial(unpack_adapters, data, sent, kind)
    data = pack_fisher(fisher)
    work["pack log4"] = partial(pack_fisher, fisher)
    work["unpack log4"] = partial(unpack_fisher, data, shapes)
    times = in_turns(work, repeats, warm_up=1)
    return {name: spread(1e3 * each for each in found) for name, found in times.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("upload", __doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--hidden-size", type=int, default=4096, help="of the timed update")
    parser.add_argument("--rank", type=int, default=64, help="of the timed update")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing")
    add_changes(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)

    updates = demo_updates(options.changes, options.rounds, options.clients)
    adapters = {kind: adapter_errors(updates, kind) for kind in BITS}
    fisher = {"log4": fisher_errors(updates)}
    times = timings(large_update(options.hidden_size, options.rank), options.repeats)

    rows: list[list[object]] = [
        [kind, *(f"{100 * each[key]:.2f} %" for key in ("median", "min", "max"))]
        for kind, each in adapters.items()
    ]
    print(table(["adapters' change, rms error", "median", "least", "most"], rows), end="\n\n")
    rows = [
        [kind, *(f"{100 * (2 ** each[key] - 1):.1f} %" for key in ("mean", "p99", "max"))]
        for kind, each in fisher.items()
    ]
    print(table(["Fisher value, off by", "mean", "99 of 100", "most"], rows), end="\n\n")
    rows = [[name, f"{each['median']:.0f}"] for name, each in times.items()]
    print(table(["one update", "ms"], rows))
    write_json(
        options,
        updates=len(updates),
        adapters=adapters,
        fisher=fisher,
        fisher_block_widths=widths(updates),
        milliseconds=times,
    )


if __name__ == "__main__":
    main()
