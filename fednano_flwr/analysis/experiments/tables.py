"""A comparison's table, on the screen, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fednano_flwr.analysis.experiments.plan import Plan, Setting
from fednano_flwr.analysis.experiments.results import SCORES, Finished, Results, pair_key, run_row
from fednano_flwr.analysis.statistics import Spread
from fednano_flwr.base.console import table
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.runs.summary import nats

WIDTH = 140


COLUMNS = (
    *("experiment", "seeds", "round 0", "mean client", "worst client", "all\nquestions"),
    *("test\nloss", "upload kB\na round", "step MB\na round", "seconds\na round"),
)
COSTS = ("upload_kb_a_round", "step_mb_a_round", "seconds_a_round")


def columns_of(plan: Plan) -> list[str]:
    """Headings; a line break is where one may be broken."""
    return [*COLUMNS, f"against {plan.baseline}\n(95 % interval)"]


def cells(plan: Plan, results: Results, setting: Setting) -> list[list[str]]:
    """The rows of one setting, as text; one an experiment."""
    return [
        [
            row["experiment"],
            str(len(row["seeds"])),
            *(str(Spread(**row[key])) for key in SCORES),
            nats(row["test_loss"]["mean"]),
            *(_number(row[key]) for key in COSTS),
            _against(plan.baseline, row, results),
        ]
        for row in results["rows"]
        if row["setting"] == setting.label
    ]


def console_table(plan: Plan, results: Results) -> str:
    """All settings, one table below the other, and what is to be said about them."""
    drawn = [
        table(_title(plan, setting), columns_of(plan), cells(plan, results, setting), WIDTH)
        for setting in plan.settings
    ]
    return "\n\n".join([*drawn, "\n".join(remarks(plan, results))])


def markdown(plan: Plan, results: Results) -> str:
    """table.md: the same in Markdown, with the command that gave it."""
    columns = [heading.replace("\n", " ") for heading in columns_of(plan)]
    parts = [f"`{results['command']}`"]
    for setting in plan.settings:
        rows = [columns, ["---"] * len(columns), *cells(plan, results, setting)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        parts.append(f"**{_title(plan, setting)}**\n\n" + "\n".join(lines))
    parts.append("\n".join(f"- {remark}" for remark in remarks(plan, results)))
    return "\n\n".join(parts) + "\n"


def remarks(plan: Plan, results: Results) -> list[str]:
    """What a reader has to know to read the table right."""
    lines = [
        f"{plan.metric} in percent, mean ± sample standard deviation over seeds; seeds draw "
        "shards, first adapters and order",
        f"against {plan.baseline}: mean client {plan.metric} less {plan.baseline}'s in points, "
        "seed by seed, with Student's 95 % interval (none with one seed; not corrected for how "
        "many comparisons are made)",
    ]
    lines.append("seconds are of one process beside the other workers; bytes do not depend on that")
    if missing := _missing(plan, results):
        lines.append(f"NOT ALL SEEDS FINISHED, so means are over different seeds: {missing}")
    for name in _on_other_data(plan):
        lines.append(
            f"OTHER DATA OR MODEL: {name} differs from {plan.baseline} in what it is trained and "
            "scored on, so their difference is not that of two methods at the same questions"
        )
    failed = ((one["run"], one["reason"]) for one in results["failed"])
    for runs, reason in by_reason(failed, key=str):
        lines.append(f"failed: {first_few(runs)}: {reason}")
    by_run: dict[str, list[tuple[str, str]]] = {}
    for one in results["client_failures"]:
        who = f"{one['client']} ({one['step']} of round {one['round']})"
        by_run.setdefault(one["run"], []).append((who, one["reason"]))
    said = [
        (run, "; ".join(f"{first_few(who)}: {reason}" for who, reason in by_reason(found)))
        for run, found in by_run.items()
    ]
    for runs, failures in by_reason(said, key=str):
        lines.append(f"CLIENTS FAILED, and {first_few(runs)} went on without them: {failures}")
    for thing, values in results["environment"].items():
        if len(values) > 1:
            counts = ", ".join(f"{value} ({count} runs)" for value, count in values.items())
            lines.append(f"RUNS DIFFER in {thing}: {counts}")
    if any("dirty" in commit for commit in results["environment"].get("commit", {})):
        lines.append("some runs are of a checkout with uncommitted changes (commit …-dirty)")
    return lines


def table_csv(plan: Plan, results: Results) -> str:
    """table.csv: one line an experiment and setting, unrounded."""
    values = {setting.label: dict(setting.values) for setting in plan.settings}
    lines = []
    for row in results["rows"]:
        line = {"experiment": row["experiment"], **values[row["setting"]]}
        line["seeds"] = len(row["seeds"])
        for key in SCORES:
            line |= {f"{key}_mean": row[key]["mean"], f"{key}_stdev": row[key]["stdev"]}
        line |= {"test_loss_mean": row["test_loss"]["mean"]}
        line |= {key: row[key] for key in COSTS}
        pair = _pair(plan.baseline, row, results)
        line |= {f"difference_{key}": pair.get(key) for key in ("mean", "low", "high")}
        lines.append(line)
    return _csv(lines)


def runs_csv(finished: Finished) -> str:
    """runs.csv: one line a run, for whoever wants to compute something else."""
    return _csv([run_row(planned, run) for planned, run in finished.items()])


def points(value: float) -> str:
    """`+1.3`; what rounds to nothing is `+0.0`."""
    return f"{value:+z.1f}"


def difference(pair: Mapping[str, Any]) -> str:
    """A paired difference in points, with its interval: `+1.3 (-0.2 to +2.8)`."""
    return f"{points(pair['mean'])} ({points(pair['low'])} to {points(pair['high'])})"


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return out.getvalue()


def _title(plan: Plan, setting: Setting) -> str:
    label = f"{setting.label.replace(',', ', ')}: " if setting.label else ""
    rounds = sorted({r.config.num_server_rounds for r in plan.runs if r.setting == setting})
    return f"{label}{plan.runs[0].clients} clients, {' or '.join(map(str, rounds))} round(s)"


def _on_other_data(plan: Plan) -> list[str]:
    """Experiments whose data set, shards or model are not the baseline's at a seed and setting."""
    at = {(run.experiment, run.setting, run.seed): run.data for run in plan.runs}
    return [
        name
        for name in plan.experiments
        if any(
            data != at[plan.baseline, setting, seed]
            for (theirs, setting, seed), data in at.items()
            if theirs == name
        )
    ]


def _missing(plan: Plan, results: Results) -> str:
    """Which rows lack which seeds."""
    found = []
    for row in results["rows"]:
        seeds = [str(seed) for seed in plan.seeds if seed not in row["seeds"]]
        if seeds:
            name = f"{row['experiment']} {row['setting']}".strip()
            found.append(f"{name} lacks {', '.join(seeds)}")
    return "; ".join(found)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _pair(baseline: str, row: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """A row's paired difference; empty where there is none."""
    key = pair_key(row["experiment"], baseline, row["setting"])
    return dict(results["paired"].get(key, {}))


def _against(baseline: str, row: Mapping[str, Any], results: Results) -> str:
    if row["experiment"] == baseline:
        return "baseline"
    pair = _pair(baseline, row, results)
    if not pair:
        return "–"
    return f"{points(pair['mean'])} (1 seed)" if pair["low"] is None else difference(pair)
