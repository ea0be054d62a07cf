"""What a comparison found, as results.json has it.

    {"command": ...,                      the command line
     "baseline": ..., "clients": ...,
     "metric": "accuracy",                 label of the metric whose mean "accuracy" is
     "settings": [{"label": "alpha=0.1", "values": {"dataset.alpha": 0.1}}, ...],
     "rows": [{"experiment": ..., "setting": "alpha=0.1", "strategy": ..., "rounds": ...,
               "seeds": [0, 1, ...],      those whose run finished
               "round_0": SPREAD,         mean over clients of the frozen model's accuracy
               "accuracy": SPREAD,        the same after the last round
               "worst": SPREAD,           the worst client's accuracy after the last round
               "all": SPREAD,             accuracy over all clients' questions together, last round
               "test_loss": SPREAD,       mean −log p of a token of the right answers, last round
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
percent points: 1.3 is 1.3 points; losses are nats. `low` to `high` is Student's 95 % interval; it
and `stdev` are null with one seed. `paired` is the accuracy (last round, mean over clients) less
the baseline's, seed by seed over the `seeds` that both have; `default-vs-<baseline>` is the first
experiment whose strategy is the app's default. A run that lacks a client's score in round 0 or in
the last round is among the failed, and in no mean. Without `--vary`, labels are empty and keys have
no `@`. Bytes and seconds are means over all rounds but round 0.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fednano_flwr.analysis import facts
from fednano_flwr.analysis.experiments.plan import ALIAS, Plan, PlannedRun, Setting
from fednano_flwr.analysis.groups import Group
from fednano_flwr.analysis.statistics import paired, spread
from fednano_flwr.runs.comparable import best
from fednano_flwr.runs.results import Run

Results = dict[str, Any]
Finished = Mapping[PlannedRun, Run]
SCORES = ("round_0", "accuracy", "worst", "all")
"""Of a run, in percent; the last three after its last round."""
RECORDED = ("model_revision", "dataset_revision", "code")
"""What not every run has: commits on the hub, and the code's digest, which a comparison notes."""


def summarize(
    plan: Plan, finished: Finished, failed: Mapping[PlannedRun, str], command: str
) -> Results:
    """Everything that the tables show."""
    by_setting = grouped(plan, finished)
    return {
        "command": command,
        "baseline": plan.baseline,
        "clients": plan.runs[0].clients,
        "metric": plan.metric,
        "settings": [{"label": s.label, "values": dict(s.values)} for s in plan.settings],
        "rows": [_row(one, setting) for setting in plan.settings for one in by_setting[setting]],
        "paired": {
            key: value
            for setting, groups in by_setting.items()
            for key, value in _paired(plan, setting, groups).items()
        },
        "failed": [{"run": str(run), "reason": reason} for run, reason in failed.items()],
        "client_failures": [
            {
                "run": str(planned),
                "round": failure.round,
                "step": failure.phase,
                "client": failure.who,
                "reason": failure.reason,
            }
            for planned, run in finished.items()
            for failure in facts.failures(run)
        ],
        "environment": environments(list({p.folder: run for p, run in finished.items()}.values())),
    }


def grouped(plan: Plan, finished: Finished) -> dict[Setting, list[Group]]:
    """For each setting a group an experiment, of the runs that finished."""
    return {
        setting: [
            Group(
                name,
                tuple(
                    finished[run]
                    for run in plan.runs
                    if run in finished and (run.experiment, run.setting) == (name, setting)
                ),
            )
            for name in plan.experiments
        ]
        for setting in plan.settings
    }


def run_row(planned: PlannedRun, run: Run) -> dict[str, Any]:
    """One line of runs.csv."""
    scores = _scores(run)
    return {
        "experiment": planned.experiment,
        **dict(planned.setting.values),
        "seed": planned.seed,
        "round_0": scores["round_0"],
        "last": scores["accuracy"],
        "best": 100 * (best(run.rounds)["accuracy"] or 0.0),
        "worst": scores["worst"],
        "all": scores["all"],
        "test_loss": run.rounds[-1].get("test_loss"),
        **_costs(Group(planned.experiment, (run,))),
        "seconds": sum(record["seconds"] for record in run.rounds),
        "client_failures": len(facts.failures(run)),
        "commit": run.environment.get("commit"),
        "folder": planned.folder.name,
    }


def environments(runs: Sequence[Run]) -> dict[str, dict[str, int]]:
    """What the runs come from: for each thing that may differ, its values and their runs."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        known = run.environment
        things = {
            "commit": known.get("commit"),
            "machine": f"{known.get('system')}, {known.get('cpus')} CPUs, "
            f"GPUs: {', '.join(known.get('gpus') or []) or 'none'}",
            "Python": known.get("python"),
            **{f"package {name}": v for name, v in known.get("packages", {}).items()},
            **{what: known[what] for what in RECORDED if known.get(what)},
        }
        for thing, value in things.items():
            found.setdefault(thing, Counter())[str(value)] += 1
    return {thing: dict(values) for thing, values in found.items()}


def pair_key(name: str, baseline: str, label: str) -> str:
    """Of `paired`.

    Args:
        label: the setting's.
    """
    return f"{name}-vs-{baseline}" + (f"@{label}" if label else "")


def _row(one: Group, setting: Setting) -> dict[str, Any]:
    first = one.runs[0] if one.runs else None
    scores = list(map(_scores, one.runs))
    return {
        "experiment": one.label,
        "setting": setting.label,
        "strategy": first.config.strategy.name if first else None,
        "rounds": first.config.num_server_rounds if first else None,
        "seeds": one.seeds,
        **{
            key: dataclasses.asdict(spread([s[key] for s in scores if s[key] is not None]))
            for key in SCORES
        },
        "test_loss": dataclasses.asdict(spread(one.losses() if one.runs else [])),
        **_costs(one),
        "accuracy_by_round": [
            spread(one.values(number)).mean for number in range(len(first.rounds) if first else 0)
        ],
        "client_failures": sum(len(facts.failures(run)) for run in one.runs),
    }


def _paired(plan: Plan, setting: Setting, groups: Sequence[Group]) -> dict[str, Any]:
    """Differences from the baseline at one setting, by `pair_key`."""
    theirs = next(one.by_seed() for one in groups if one.label == plan.baseline)
    result = {}
    for one in groups:
        differences = paired(one.by_seed(), theirs)
        if one.label == plan.baseline or not differences:
            continue
        found = spread(list(differences.values()))
        values = {"mean": found.mean, "low": found.low, "high": found.high}
        names = (one.label, ALIAS) if one.label == plan.default.get(setting) else (one.label,)
        for name in names:
            key = pair_key(name, plan.baseline, setting.label)
            result[key] = {**values, "seeds": list(differences)}
    return result


def _scores(run: Run) -> dict[str, Any]:
    """`SCORES` of a run; None where there is no test question."""
    first, last = run.rounds[0], run.rounds[-1]
    known = [share for share in last["accuracy_per_client"].values() if share is not None]
    together = last["accuracy_by"].get("all", {}).get("accuracy")
    shares = (first["accuracy"], last["accuracy"], min(known, default=None), together)
    return {k: None if v is None else 100 * v for k, v in zip(SCORES, shares, strict=True)}


def _costs(one: Group) -> dict[str, float | None]:
    """Means over all rounds but round 0, in which nobody trains."""
    upload, step = one.a_round("round_bytes_up"), one.a_round("step_bytes_up", "step_bytes_down")
    return {
        "upload_kb_a_round": None if upload is None else upload / 1e3,
        "step_mb_a_round": None if step is None else step / 1e6,
        "seconds_a_round": one.a_round("seconds"),
    }
