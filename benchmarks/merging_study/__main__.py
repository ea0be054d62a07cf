"""Runs what is missing of the study, and makes its tables and pictures anew.

    python -m benchmarks.merging_study [PART...] [--dry-run] [--workers 2]

Each finished run is a line of results/merging/runs.csv and is not run again; Ctrl-C loses the runs
in progress only. The part `real` needs `python -m fednano_demo.real.build`, `privacy` needs
pip install 'fednano-flwr[privacy]'.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.merging_study.command import plan_lines, study
from benchmarks.merging_study.places import Places
from benchmarks.merging_study.plan import PARTS
from benchmarks.study.plan import ROOT
from fednano_demo.real.build import default_folder
from fednano_flwr.base.signals import interrupts
from fednano_flwr.config.machine import cpus


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.merging_study",
        description="How strategies merge, each at a learning rate of its own.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--dry-run", action="store_true", help="say what is left, and how long")
    parser.add_argument("--workers", type=int, default=cpus(), help="processes; default a CPU each")
    parser.add_argument("--model", type=Path, default=default_folder(), help="the real LLM's")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "merging-study", help="of runs")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "merging" / "runs.csv")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    places = Places(options.model.resolve(), options.out.resolve())
    if options.dry_run:
        print("\n".join(plan_lines(places, parts, options.csv, options.workers)))
        return
    try:
        with interrupts():
            failed = study(places, parts, options.csv, options.workers, partial(print, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
