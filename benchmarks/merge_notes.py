"""What merges met, round by round: Fisher values of A and B, clients' scales, what was cut off.

    python -m benchmarks.merge_notes --comparison runs/compare/demo --setting alpha=0.1

Reads the runs of a comparison that `fednano compare` has written, at one of its settings; runs
nothing itself. Strategies note what they saw in each line of metrics.jsonl, under `merge`. Prints
means over the runs of an experiment by round, and the least and most over runs; writes JSON, and
with `--picture` a figure of the shares that are in percent. Values that are infinite are left out.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import options_of, table, write_json
from fednano_flwr.analysis.experiments.plan import RUNS

PREFIX = "base_model.model."
SITES = ("image", "text")
Notes = Mapping[str, float]
FISHER, CUT = "Fisher of A against B", ("missed by factors", "residual")


def settings(comparison: Path) -> dict[str, dict[str, Any]]:
    """Label to values, of the comparison in this folder."""
    results = json.loads((comparison / "results.json").read_text(encoding="utf-8"))
    return {setting["label"]: setting["values"] for setting in results["settings"]}


def merges(comparison: Path, values: Mapping[str, Any]) -> Iterator[tuple[str, int, Notes]]:
    """(experiment, round, notes) of every merge of the comparison's runs at a setting's values."""
    with (comparison / "runs.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        if any(line[key] != str(value) for key, value in values.items()):
            continue
        run = comparison.parent / RUNS / line["folder"]
        for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(text)
            if record["merge"]:
                yield line["experiment"], record["round"], record["merge"]


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
    return {what: value for what, value in found.items() if math.isfinite(value)}


def _mean(values: Sequence[float] | None) -> float | None:
    return statistics.mean(values) if values else None


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
                    f"{row['experiment']}: {kind}, {site}"
                    if kind in CUT
                    else (f"{row['experiment']}, {site} adapter")
                )
                means = {k: m for k, m in enumerate(row["by_round"], 1) if m is not None}
                mark = "-o" if site == "image" else "--s"
                axes.plot(list(means), list(means.values()), mark, label=label)
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
    parser.add_argument(
        "--comparison", type=Path, required=True, help="folder with a comparison's runs.csv"
    )
    parser.add_argument(
        "--setting", help="as results.json labels it: alpha=0.1 (default: the only one)"
    )
    parser.add_argument("--picture", type=Path, help="where a figure goes (default: none)")
    options = parser.parse_args(argv)

    known = settings(options.comparison)
    if options.setting is None and len(known) == 1:
        options.setting = next(iter(known))
    if options.setting not in known:
        parser.error(f"--setting {options.setting}: give one of {'; '.join(known)}")
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for experiment, server_round, notes in merges(options.comparison, known[options.setting]):
        for what, value in seen(notes).items():
            values[experiment, what][server_round].append(value)
    if not values:
        parser.error(f"no run of {options.comparison} has noted anything of its merges")
    options.comparison = str(options.comparison)
    last = max(server_round for found in values.values() for server_round in found)
    results: list[dict[str, Any]] = [
        {
            "experiment": experiment,
            "what": what,
            "runs": max(map(len, found.values())),
            "by_round": [_mean(found.get(k)) for k in range(1, max(found) + 1)],
            "least": min(map(min, found.values())),
            "most": max(map(max, found.values())),
        }
        for (experiment, what), found in sorted(values.items())
    ]
    headings = ["experiment", "", *(f"round {k}" for k in range(1, last + 1)), "least–most"]
    rows = [
        [
            row["experiment"],
            row["what"],
            *("–" if value is None else f"{value:.1f}" for value in row["by_round"]),
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
