"""What merges met, round by round: Fisher values of A and B, clients' scales, what was cut off.

    python -m benchmarks.merge_notes --runs runs/compare/runs

Reads the runs that `fednano compare` kept there; runs nothing itself. Strategies note what they saw
in each line of metrics.jsonl, under `merge`. Prints means over the runs of a strategy by round, and
the least and most over runs of how unlike the clients' Fisher scales are; writes JSON.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import options_of, table, write_json

PREFIX = "base_model.model."
SITES = ("image", "text")
Notes = Mapping[str, float]


def merges(folder: Path, wanted: Mapping[str, Any]) -> Iterator[tuple[str, int, Notes]]:
    """(strategy, round, notes) of every merge of the finished runs whose config has `wanted`."""
    for run in sorted(path.parent for path in folder.glob("*/metrics.jsonl")):
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        records = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
        if len(records) <= config["num-server-rounds"]:
            continue
        if any(config[key] != value for key, value in wanted.items()):
            continue
        for record in records[1:]:
            if record["merge"]:
                yield config["strategy.name"], record["round"], record["merge"]


def seen(notes: Notes) -> dict[str, float]:
    """What is shown of a merge: ratios that do not depend on the loss's scale, in percent."""
    found: dict[str, float] = {}
    for site in SITES:
        name = f"{PREFIX}{site}_adapter"
        a, b = (notes.get(f"fisher {name}.lora_{factor}.weight") for factor in "AB")
        if a is not None and b:
            found[f"Fisher of A against B, {site}, %"] = 100 * a / b
        for key in ("residual", "missed by factors"):
            if (share := notes.get(f"{key} {name}")) is not None:
                found[f"{key}, {site}, %"] = 100 * share
    if "fisher scale" in notes:
        found["largest client's Fisher against the smallest's"] = notes["fisher scale"]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("merge_notes", __doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="joined by commas")
    parser.add_argument("--alpha", type=float, default=0.1)
    options = parser.parse_args(argv)

    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in map(int, options.seeds.split(",")):
        wanted = {"seed": seed, "dataset.alpha": options.alpha, "upload.adapters": "float32"}
        for strategy, server_round, notes in merges(options.runs, wanted):
            for what, value in seen(notes).items():
                values[strategy, what][server_round].append(value)
    if not values:
        parser.error(f"no finished run in {options.runs} has noted anything of its merges")
    options.runs = str(options.runs)
    last = max(server_round for found in values.values() for server_round in found)
    results = [
        {
            "strategy": strategy,
            "what": what,
            "runs": len(found[1]),
            "by_round": [statistics.mean(found[k]) for k in sorted(found)],
            "least": min(map(min, found.values())),
            "most": max(map(max, found.values())),
        }
        for (strategy, what), found in sorted(values.items())
    ]
    headings = ["strategy", "", *(f"round {k}" for k in range(1, last + 1)), "least–most"]
    rows = [
        [
            row["strategy"],
            row["what"],
            *(f"{value:.1f}" for value in row["by_round"]),
            *["–"] * (last - len(row["by_round"])),
            f"{row['least']:.1f}–{row['most']:.1f}",
        ]
        for row in results
    ]
    print(table(headings, rows))
    write_json(options, merges=results)


if __name__ == "__main__":
    main()
