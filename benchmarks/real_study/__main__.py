"""Runs what is missing of the study, and makes its tables anew.

    python -m benchmarks.real_study [TASK...] [--dry-run] [--workers 2]

`python -m fednano_demo.real.build` makes the model first. Each finished run is a line of
results/real/runs.csv and is not run again; Ctrl-C loses the runs in progress only.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.real_study.command import plan_lines, study
from benchmarks.real_study.plan import TASKS, Places
from benchmarks.study.plan import ROOT
from fednano_demo.real.build import default_folder
from fednano_flwr.base.signals import interrupts
from fednano_flwr.config.machine import cpus


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_study",
        description="How much of LoRA's gain do NanoAdapters get, in front of a real LLM?",
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--dry-run", action="store_true", help="say what is left, and how long")
    parser.add_argument("--workers", type=int, default=cpus(), help="processes; default a CPU each")
    parser.add_argument("--model", type=Path, default=default_folder(), help="its folder")
    parser.add_argument(
        "--scienceqa", type=Path, default=ROOT / "data" / "scienceqa", help="folder of a copy"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "real-study", help="of runs")
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "real" / "runs.csv")
    options = parser.parse_args()
    tasks = options.tasks or list(TASKS)
    if unknown := set(tasks) - set(TASKS):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(TASKS)}")
    places = Places(*(path.resolve() for path in (options.model, options.scienceqa, options.out)))
    if options.dry_run:
        print("\n".join(plan_lines(places, tasks, options.csv, options.workers)))
        return
    try:
        with interrupts():
            failed = study(places, tasks, options.csv, options.workers, partial(print, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
