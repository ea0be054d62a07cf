"""What a comparison found, as results.json has it.

    {"command": ...,                      the command line
     "baseline": ..., "clients": ...,
     "settings": [{"label": "alpha=0.1", "values": {"dataset.alpha": 0.1}}, ...],
     "rows": [{"experiment": ..., "setting": "alpha=0.1", "strategy": ..., "rounds": ...,
               "seeds": [0, 1, ...],      those whose run finished
               "round_0": SPREAD,         mean over clients of the frozen model's accuracy
               "accuracy": SPREAD,        the same after the last round
               "worst": SPREAD,           the worst client's accuracy after the last round
               "all": SPREAD,             accuracy over all clients' questions together, last round
               "upload_kb_a_round": ..., "step_mb_a_round": ..., "seconds_a_round": ...,
               "accuracy_by_round": [...],  null where some client did not score
               "client_failures": 0}, ...],
     "paired": {"fednano-vs-fedavg@alpha=0.1":
                {"mean": ..., "low": ..., "high": ..., "seeds": [...]}, ...},
     "failed": [{"run": ..., "reason": ...}, ...],
     "client_failures": [{"run": ..., "round": ..., "step": "train", "client": "client 1",
                          "reason": ...}, ...],    in runs that went on and finished
     "environment": {"commit": {...}, "package torch": {...}, ...}}    value to number of runs

SPREAD is {"mean", "stdev", "low", "high"} over seeds. Accuracies are percent and their differences
percent points: 1.3 is 1.3 points. `low` to `high` is Student's 95 % interval; it and `stdev` are
null with one seed. `paired` is the accuracy (last round, mean over clients) less the baseline's,
seed by seed over the `seeds` that both have; `default-vs-<baseline>` is the first experiment whose
strategy is the app's default. A run that lacks a client's score in round 0 or in the last round is
among the failed, and in no mean. Without `--vary`, labels are empty and keys have no `@`. Bytes and
seconds are means over all rounds but round 0.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fednano_flwr.analysis.experiments.plan import ALIAS, Plan, Run, Setting
from fednano_flwr.analysis.experiments.store import Finished
from fednano_flwr.analysis.statistics import paired, spread

Results = dict[str, Any]
HUB_COMMITS = ("model_revision", "dataset_revision")


def summarize(
    plan: Plan, finished: Mapping[Run, Finished], failed: Mapping[Run, str], command: str
) -> Results:
    """Everything that the tables and pictures show."""
    rows = [
        _row(name, setting, _of(plan, finished, name, setting))
        for setting in plan.settings
        for name in plan.experiments
    ]
    return {
        "command": command,
        "baseline": plan.baseline,
        "clients": plan.runs[0].clients,
        "settings": [{"label": s.label, "values": dict(s.values)} for s in plan.settings],
        "rows": rows,
        "paired": _all_paired(plan, finished),
        "failed": [{"run": str(run), "reason": reason} for run, reason in failed.items()],
        "client_failures": [
            {"run": str(run), **dataclasses.asdict(failure)}
            for run, one in finished.items()
            for failure in one.failures
        ],
        "environment": environments(list({r.folder: f for r, f in finished.items()}.values())),
    }


def run_row(one: Finished) -> dict[str, Any]:
    """One line of runs.csv."""
    return {
        "experiment": one.run.experiment,
        **dict(one.run.setting.values),
        "seed": one.run.seed,
        "round_0": _points(one.records[0]["accuracy"]),
        "last": last_accuracy(one),
        "best": _points(max((r["accuracy"] or 0.0) for r in one.records if one.of_everyone(r))),
        "worst": worst_client(one),
        "all": all_questions(one),
        "upload_kb_a_round": _mean_of([one], _upload),
        "step_mb_a_round": _mean_of([one], _step),
        "seconds_a_round": _mean_of([one], _seconds),
        "seconds": one.seconds,
        "client_failures": len(one.failures),
        "commit": one.environment.get("commit"),
        "folder": one.run.folder.name,
    }


def last_accuracy(one: Finished) -> float | None:
    """Percent, mean over clients, after the last round."""
    return _points(one.records[-1]["accuracy"])


def worst_client(one: Finished) -> float | None:
    """Percent, of the client that does worst after the last round."""
    known = [a for a in one.records[-1]["accuracy_per_client"].values() if a is not None]
    return _points(min(known)) if known else None


def all_questions(one: Finished) -> float | None:
    """Percent of all clients' test questions together, after the last round."""
    return _points(one.records[-1]["accuracy_by"].get("all", {}).get("accuracy"))


def environments(runs: Sequence[Finished]) -> dict[str, dict[str, int]]:
    """What the runs come from: for each thing that may differ, its values and their runs."""
    found: dict[str, Counter[str]] = {}
    for one in runs:
        known = one.environment
        things = {
            "commit": known.get("commit"),
            "machine": f"{known.get('system')}, {known.get('cpus')} CPUs, "
            f"GPUs: {', '.join(known.get('gpus') or []) or 'none'}",
            "Python": known.get("python"),
            **{f"package {name}": v for name, v in known.get("packages", {}).items()},
            **{what: known[what] for what in HUB_COMMITS if known.get(what)},
        }
        if "code" in known:  # only what a comparison ran
            things["code"] = known["code"]
        for thing, value in things.items():
            found.setdefault(thing, Counter())[str(value)] += 1
    return {thing: dict(values) for thing, values in found.items()}


def pair_key(name: str, baseline: str, setting: Setting) -> str:
    return f"{name}-vs-{baseline}" + (f"@{setting.label}" if setting.label else "")


def _row(name: str, setting: Setting, runs: Sequence[Finished]) -> dict[str, Any]:
    by_round = [
        [_points(record["accuracy"]) if one.of_everyone(record) else None for record in one.records]
        for one in runs
    ]
    return {
        "experiment": name,
        "setting": setting.label,
        "strategy": runs[0].run.config.strategy.name if runs else None,
        "rounds": runs[0].run.config.num_server_rounds if runs else None,
        "seeds": [one.run.seed for one in runs],
        "round_0": _spread([_points(one.records[0]["accuracy"]) for one in runs]),
        "accuracy": _spread([last_accuracy(one) for one in runs]),
        "worst": _spread([worst_client(one) for one in runs]),
        "all": _spread([all_questions(one) for one in runs]),
        "upload_kb_a_round": _mean_of(runs, _upload),
        "step_mb_a_round": _mean_of(runs, _step),
        "seconds_a_round": _mean_of(runs, _seconds),
        "accuracy_by_round": [
            None if None in values else _spread(values)["mean"]
            for values in zip(*by_round, strict=True)
        ],
        "client_failures": sum(len(one.failures) for one in runs),
    }


def accuracies(
    plan: Plan, finished: Mapping[Run, Finished], name: str, setting: Setting
) -> dict[int, float]:
    """Seed to accuracy after the last round, of the runs that finished."""
    return {
        one.run.seed: value
        for one in _of(plan, finished, name, setting)
        if (value := last_accuracy(one)) is not None
    }


def _of(
    plan: Plan, finished: Mapping[Run, Finished], name: str, setting: Setting
) -> list[Finished]:
    return [
        finished[run]
        for run in plan.runs
        if run in finished and run.experiment == name and run.setting == setting
    ]


def _all_paired(plan: Plan, finished: Mapping[Run, Finished]) -> dict[str, Any]:
    result = {}
    for setting in plan.settings:
        theirs = accuracies(plan, finished, plan.baseline, setting)
        for name in plan.experiments:
            seeds, difference = paired(accuracies(plan, finished, name, setting), theirs)
            if name == plan.baseline or not seeds:
                continue
            values = {"mean": difference.mean, "low": difference.low, "high": difference.high}
            aliases = (name, ALIAS) if name == plan.default.get(setting) else (name,)
            for alias in aliases:
                result[pair_key(alias, plan.baseline, setting)] = {**values, "seeds": seeds}
    return result


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    return dataclasses.asdict(spread([value for value in values if value is not None]))


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _mean_of(runs: Sequence[Finished], value: Callable[[dict[str, Any]], float]) -> float | None:
    """Mean over all rounds of all runs but round 0, in which nobody trains."""
    values = [value(record) for one in runs for record in one.records[1:]]
    return statistics.fmean(values) if values else None


def _upload(record: dict[str, Any]) -> float:
    return record["round_bytes_up"] / 1e3


def _step(record: dict[str, Any]) -> float:
    return (record["step_bytes_up"] + record["step_bytes_down"]) / 1e6


def _seconds(record: dict[str, Any]) -> float:
    return record["seconds"]
