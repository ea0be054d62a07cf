"""Runs what is missing of the study, and makes its tables anew.

    python -m benchmarks.real_study [TASK...] [--dry-run] [--workers 2]

`python -m fednano_demo.real.build` makes the model first. Each finished run is a line of
results/real/runs.csv and is not run again; Ctrl-C loses the runs in progress only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.real_study.command import plan_lines, study
from benchmarks.real_study.plan import TASKS, Places
from benchmarks.study.main import carry_out, parse, parser_of
from benchmarks.study.plan import ROOT


def main() -> None:
    """The command line."""
    description = "How much of LoRA's gain do NanoAdapters get, in front of a real LLM?"
    parser = parser_of("real", description, TASKS)
    parser.add_argument(
        "--scienceqa", type=Path, default=ROOT / "data" / "scienceqa", help="folder of a copy"
    )
    options = parse(parser, TASKS)
    places = Places(options.model, options.scienceqa.resolve(), options.out)
    asked = (places, options.parts, options.csv, options.workers)
    carry_out(options.dry_run, partial(plan_lines, *asked), partial(study, *asked))


if __name__ == "__main__":
    main()
