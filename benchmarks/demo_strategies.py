"""Accuracy of the strategies on the demo: several seeds each, against round 0 and centralized.

    python -m benchmarks.demo_strategies --seeds 0,1,2

Every run is `fednano run` with the demo's defaults and one thing changed. "centralized" is one
client that holds all questions: the same code, the same number of passes over the data, no merging.
Takes about a minute a run on 2 CPU cores. Prints a table and writes JSON.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import add_changes, integers, options_of, table, write_json
from benchmarks.runs import fednano_run

METHODS = {  # strategy and number of clients
    "fednano": ("fednano", 5),
    "fednano-ef": ("fednano-ef", 5),
    "fedavg": ("fedavg", 5),
    "centralized": ("fedavg", 1),
}


def run(method: str, seed: int, changes: Sequence[str], folder: Path) -> list[dict]:
    """The lines of metrics.jsonl of one run."""
    strategy, clients = METHODS[method]
    own = [f"strategy.name={strategy}", *changes, f"seed={seed}"]
    return fednano_run(folder, f"{method}-{seed}", own, clients)


def summary(runs: list[list[dict]]) -> dict[str, float]:
    """Mean and spread over seeds, accuracies in percent; bytes and seconds of a round."""
    first = [100 * records[0]["accuracy"] for records in runs]
    last = [100 * records[-1]["accuracy"] for records in runs]
    gains = [b - a for a, b in zip(first, last, strict=True)]
    spread = statistics.stdev if len(runs) > 1 else lambda values: 0.0
    rounds = [record for records in runs for record in records[1:]]
    return {
        "round_0": statistics.mean(first),
        "last": statistics.mean(last),
        "last_stdev": spread(last),
        "gain": statistics.mean(gains),
        "gain_min": min(gains),
        "step_mb_a_round": statistics.mean(
            (r["step_bytes_up"] + r["step_bytes_down"]) / 1e6 for r in rounds
        ),
        "upload_kb_a_round": statistics.mean(r["round_bytes_up"] / 1e3 for r in rounds),
        "seconds_a_round": statistics.mean(r["seconds"] for r in rounds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("demo_strategies", __doc__)
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2], help="joined by commas")
    parser.add_argument("--methods", default=",".join(METHODS))
    add_changes(parser)
    options = parser.parse_args(argv)

    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="fednano-bench-") as folder:
        for method in options.methods.split(","):
            runs = []
            for seed in options.seeds:
                runs.append(run(method, seed, options.changes, Path(folder)))
                print(f"{method} seed {seed}: {100 * runs[-1][-1]['accuracy']:.1f} %", flush=True)
            accuracies = [[100 * record["accuracy"] for record in records] for records in runs]
            results[method] = {**summary(runs), "accuracy_by_round": accuracies}

    rows = [
        (
            method,
            f"{row['round_0']:.1f}",
            f"{row['last']:.1f}",
            f"{row['last_stdev']:.1f}",
            f"{row['gain']:+.1f} ({row['gain_min']:+.1f})",
            f"{row['step_mb_a_round']:.1f}",
            f"{row['upload_kb_a_round']:.0f}",
            f"{row['seconds_a_round']:.1f}",
        )
        for method, row in results.items()
    ]
    headings = ["method", "round 0", "last round", "± over seeds", "gain (least)"]
    headings += ["step MB a round", "upload kB a round", "seconds a round"]
    print(f"\n{len(options.seeds)} seed(s)\n\n{table(headings, rows)}")
    write_json(options, results=results)


if __name__ == "__main__":
    main()
