"""What the benchmarks share: options, timing in turns, memory of a process, tables and JSON.

Nothing large is imported here: some benchmarks measure a process's memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLACES = ("json", "folder", "measure", "picture")  # options that are no part of a setting


def options_of(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`, with `--json`.

    Args:
        doc: the module's docstring; its first line says what is measured.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(doc or "").splitlines()[0]
    )
    parser.add_argument(
        "--json",
        default=f"benchmarks/results/{name}.json",
        metavar="FILE",
        help="where results go (default: %(default)s)",
    )
    parser.add_argument("--note", default="", help="what else there is to say of a measurement")
    return parser


def add_changes(parser: argparse.ArgumentParser) -> None:
    """`-c key=value`, as often as needed: the run config's, as `fednano run` takes it."""
    parser.add_argument(
        "-c",
        dest="changes",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change the run config, as in `fednano run`",
    )


def integers(text: str) -> list[int]:
    """`"0,1"` as `[0, 1]`, `""` as `[]`: a type for an option."""
    return [int(part) for part in text.split(",") if part]


def in_turns(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 3,
    before: Callable[[], object] = lambda: None,
    finish: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every variant, one after another in each repetition.

    A machine's speed drifts: only the ratio of times that were taken side by side means something.

    Args:
        warm_up: first repetitions, which do not count.
        before: done before each call, not timed.
        finish: waits until a call's work is done (a GPU's), timed.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(warm_up + repeats):
        for name, work in variants.items():
            before()
            started = time.perf_counter()
            work()
            finish()
            if repeat >= warm_up:
                times[name].append(time.perf_counter() - started)
    return times


def waiting_for(device: str) -> Callable[[], object]:
    """What waits for a device's work to be done; nothing to wait for on a CPU."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def name_of(device: str) -> str:
    """What the device is."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most."""
    known = list(values)
    return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def ratios(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Spread of the quotients of what was measured side by side."""
    return spread(one / other for one, other in zip(values, base, strict=True))


def spread_text(found: Mapping[str, float], digits: int = 2) -> str:
    """`1.23 (1.20–1.31)`."""
    median, least, most = (f"{found[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least}–{most})"


def memory(key: str) -> int:
    """Bytes of this process in memory now (VmRSS) or at most so far (VmHWM); Linux only.

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    top, *lines = ("| " + " | ".join(map(str, line)) + " |" for line in (headings, *rows))
    return "\n".join([top, "|" + "---|" * len(headings), *lines])


def write_json(options: argparse.Namespace, **results: Any) -> dict[str, Any]:
    """Replace `options.json` by results, with the setting and the machine; returns what it holds.

    `setting` are the options but for where things lie, or what `results` has under that name.
    """
    from fednano_flwr.base.files import replace_file
    from fednano_flwr.config.machine import environment

    setting = {key: value for key, value in vars(options).items() if key not in PLACES}
    record = {"setting": setting, "environment": environment()} | results
    out = Path(options.json)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return record
