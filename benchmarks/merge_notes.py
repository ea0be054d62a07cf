"""What merges met, round by round: Fisher values of A and B, clients' scales, what was cut off.

    python -m benchmarks.merge_notes --runs runs/compare/runs

Reads the runs that `fednano compare` kept there; runs nothing itself. Strategies note what they saw
in each line of metrics.jsonl, under `merge`. Prints means over the runs of a strategy by round, and
the least and most over runs of how unlike the clients' Fisher scales are; writes JSON, and with
`--picture` a figure of the shares that are in percent.
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
FISHER, CUT = "Fisher of A against B", ("missed by factors", "residual")


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
            found[f"{FISHER}, {site}, %"] = 100 * a / b
        for key in CUT:
            if (share := notes.get(f"{key} {name}")) is not None:
                found[f"{key}, {site}, %"] = 100 * share
    if "fisher scale" in notes:
        found["largest client's Fisher against the smallest's"] = notes["fisher scale"]
    return found


def draw(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Left: what averaging factors misses and the cut loses; right: A's Fisher beside B's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    titles = (
        "share of the mean product's norm, %",
        "mean Fisher value of A's numbers, % of B's",
    )
    for axes, title, kinds in zip(figure.subplots(1, 2), titles, (CUT, (FISHER,)), strict=True):
        for row in results:
            kind, _, site = row["what"].removesuffix(", %").rpartition(", ")
            if kind in kinds:
                label = (
                    f"{row['strategy']}: {kind}, {site}"
                    if kind in CUT
                    else (f"{row['strategy']}, {site} adapter")
                )
                rounds = range(1, len(row["by_round"]) + 1)
                axes.plot(rounds, row["by_round"], "-o" if site == "image" else "--s", label=label)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("round", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.legend(fontsize=8, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = options_of("merge_notes", __doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of finished runs")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="joined by commas")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--picture", type=Path, help="where a figure goes (default: none)")
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
    if options.picture:
        draw(results, options.picture)
    write_json(options, merges=results)


if __name__ == "__main__":
    main()
