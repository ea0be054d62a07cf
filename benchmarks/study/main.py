"""The command line of a study."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from benchmarks.study.missing import Say
from benchmarks.study.plan import ROOT
from fednano_demo.real.build import default_folder
from fednano_flwr.base.signals import interrupts
from fednano_flwr.config.machine import cpus


def parser_of(name: str, description: str, parts: Collection[str]) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME_study`.

    Args:
        name: of the study and of the folder in results/.
        parts: what can be run by itself.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}_study", description=description
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; or all")
    parser.add_argument("--dry-run", action="store_true", help="say what is left, and how long")
    parser.add_argument("--workers", type=int, default=cpus(), help="processes; default a CPU each")
    parser.add_argument("--model", type=Path, default=default_folder(), help="the real LLM's")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / f"{name}-study", help="of runs")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / name / "runs.csv")
    return parser


def parse(parser: argparse.ArgumentParser, parts: Collection[str]) -> argparse.Namespace:
    """The options; all parts where none is named. Paths are absolute."""
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(parts)}")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least 1")
    options.parts = options.parts or list(parts)
    for name in ("model", "out", "csv"):
        setattr(options, name, getattr(options, name).resolve())
    return options


def carry_out(
    dry_run: bool, plan_lines: Callable[[], list[str]], study: Callable[[Say], list[str]]
) -> None:
    """Say what is left, or do it; exits with 1 and the reasons where something failed."""
    try:
        if dry_run:
            print("\n".join(plan_lines()))
            return
        with interrupts():
            failed = study(partial(print, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    sys.exit("\n".join(failed) if failed else 0)
