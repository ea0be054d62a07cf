"""Accuracy of the strategies on the demo: several seeds each, against round 0 and centralized.

    python benchmarks/demo_strategies.py --seeds 0,1,2

Every run is `fednano run` with the demo's defaults and one thing changed. "centralized" is one
client that holds all questions: the same code, the same number of passes over the data, no merging.
Takes about a minute a run on 2 CPU cores. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

METHODS = {
    "fednano": ["-c", "strategy.name=fednano"],
    "fednano-ef": ["-c", "strategy.name=fednano-ef"],
    "fedavg": ["-c", "strategy.name=fedavg"],
    "centralized": ["-c", "strategy.name=fedavg", "--clients", "1"],
}


def run(method: str, seed: int, extra: list[str], folder: Path) -> list[dict]:
    """The lines of metrics.jsonl of one run."""
    name = f"{method}-{seed}"
    command = [sys.executable, "-m", "fednano_flwr.cli", "run", *METHODS[method], *extra]
    command += ["-c", f"seed={seed}", "-c", f"run.dir={folder}", "-c", f"run.name={name}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", default="benchmarks/results/demo_strategies.json")
    parser.add_argument("-c", dest="changes", action="append", default=[], help="as `fednano run`")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    extra = [part for change in options.changes for part in ("-c", change)]

    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="fednano-bench-") as folder:
        for method in options.methods.split(","):
            runs = []
            for seed in seeds:
                runs.append(run(method, seed, extra, Path(folder)))
                print(f"{method} seed {seed}: {100 * runs[-1][-1]['accuracy']:.1f} %", flush=True)
            accuracies = [[100 * record["accuracy"] for record in records] for records in runs]
            results[method] = {**summary(runs), "accuracy_by_round": accuracies}

    print(f"\n| method | round 0 | last round | ± over seeds | gain (least) | {len(seeds)} seeds |")
    print("|---|---|---|---|---|---|")
    for method, row in results.items():
        print(
            f"| {method} | {row['round_0']:.1f} | {row['last']:.1f} | {row['last_stdev']:.1f} | "
            f"{row['gain']:+.1f} ({row['gain_min']:+.1f}) | "
            f"step {row['step_mb_a_round']:.1f} MB, up {row['upload_kb_a_round']:.0f} kB, "
            f"{row['seconds_a_round']:.1f} s a round |"
        )
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "processor": platform.machine()}
    setting = {"seeds": seeds, "changes": options.changes, **machine}
    out.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
