"""Runs what is missing of the study, and makes its tables and pictures anew.

    python -m benchmarks.merging_study [PART...] [--dry-run] [--workers 2]

Each finished run is a line of results/merging/runs.csv and is not run again; Ctrl-C loses the runs
in progress only. The part `real` needs `python -m fednano_demo.real.build`, `privacy` needs
pip install 'fednano-flwr[privacy]'.
"""

from __future__ import annotations

from functools import partial

from benchmarks.merging_study.command import plan_lines, study
from benchmarks.merging_study.places import Places
from benchmarks.merging_study.plan import PARTS
from benchmarks.study.main import carry_out, parse, parser_of


def main() -> None:
    """The command line."""
    description = "How strategies merge, each at a learning rate of its own."
    options = parse(parser_of("merging", description, PARTS), PARTS)
    asked = (Places(options.model, options.out), options.parts, options.csv, options.workers)
    carry_out(options.dry_run, partial(plan_lines, *asked), partial(study, *asked))


if __name__ == "__main__":
    main()
