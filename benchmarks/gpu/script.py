"""All rows that need a GPU in one run of at most 8 minutes, the most useful first.

    python -m benchmarks.gpu --json FILE
    python -m benchmarks.gpu --small --json FILE    # all rows on a CPU, too small to mean anything

For one GPU of 140 GB. The language model of LLaVA-1.5-7B's shape, its weights drawn on the device
in bfloat16. The rows: `rows.py` says what each measures. The file is replaced after each row; a row
that fails has its error in it, and the next one goes on. No row begins after `--budget` seconds:
`not_run` names those that did not. Exits with 1 if a row failed.

Needs torch, transformers, peft, accelerate, grpcio, protobuf, safetensors, numpy, pillow. Rows of
8 and 4 bits are left out where bitsandbytes is missing. There is no Flower in any of them.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report import name_of, options_of, write_json

Row = Callable[[], tuple[str, dict[str, Any]]]
"""Measures something; returns a line that says it, and all figures."""


class LeftOutError(Exception):
    """A row cannot be measured here, for a reason that is no fault."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    # Here, since clients' processes import this module, too, and wait for nothing that they lack.
    import torch

    from benchmarks.gpu.rows import rows_of
    from fednano_flwr.config import ConfigError
    from fednano_flwr.config.machine import environment
    from fednano_flwr.models.device import describe_device

    try:
        describe_device("--device", options.device, "run with --small")
    except ConfigError as error:
        sys.exit(str(error))
    if options.small:
        torch.set_num_threads(1)
    rest = {"environment": environment(), "device": name_of(options.device)}

    def write(rows: dict[str, Any], not_run: list[str]) -> None:
        write_json(options, **rest, rows=rows, not_run=not_run)

    found = measure(rows_of(options), options.budget, write)
    sys.exit(any("error" in row for row in found.values()))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of("gpu", __doc__)
    parser.add_argument("--small", action="store_true", help="all rows, with a tiny model")
    parser.add_argument("--device", help="default: cuda, with --small cpu")
    parser.add_argument(
        "--budget",
        type=float,
        default=400.0,
        help="no row begins after so many seconds (%(default)g)",
    )
    options = parser.parse_args(argv)
    options.device = options.device or ("cpu" if options.small else "cuda")
    return options


def measure(
    rows: Mapping[str, Row], budget: float, write: Callable[[dict[str, Any], list[str]], None]
) -> dict[str, Any]:
    """The rows one after another, as long as `budget` seconds are not over.

    Args:
        write: takes what is known and which rows were not run, after each row.
    """
    started, found, waiting = time.monotonic(), dict[str, Any](), list(rows)
    write(found, waiting)
    while waiting and time.monotonic() - started < budget:
        name = waiting.pop(0)
        began = time.monotonic()
        try:
            line, figures = rows[name]()
            found[name] = {"line": line} | figures
        except LeftOutError as reason:
            found[name] = {"left_out": str(reason)}
            line = f"left out: {reason}"
        except Exception as error:
            traceback.print_exc()
            line = f"{type(error).__name__}: {error}"
            found[name] = {"error": line}
        found[name]["row_seconds"] = time.monotonic() - began
        write(found, waiting)
        print(f"{time.monotonic() - started:5.0f} s  {name}: {line}", flush=True)
        free_memory()
    if waiting:
        print(f"not run, as {budget:g} s were over: {', '.join(waiting)}")
    return found


def free_memory() -> None:
    """Give back what a row had on the device, one that failed above all."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
