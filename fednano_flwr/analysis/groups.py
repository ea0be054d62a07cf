"""Groups of runs that differ in the seed alone: their means, and what tells them apart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fednano_flwr.analysis import facts
from fednano_flwr.analysis.config_digest import digest_of, matters
from fednano_flwr.base.reasons import by_reason, first_few
from fednano_flwr.config import ConfigError
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.runs.results import Run
from fednano_flwr.runs.summary import lost_lines

FINGERPRINT = "model.fingerprint"
DATA_COMMIT = "dataset.commit"
MOST_LETTERS = 48
"""Of a group's label."""


@dataclass(frozen=True)
class Group:
    """Runs of one config, model and number of clients, one a seed.

    Accuracies, mean scores by the runs' metric, are means over clients, in percent, of rounds that
    all clients scored.

    Attributes:
        label: what tells it from the other groups.
        runs: by seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def metric(self) -> str:
        """The label of its runs' metric."""
        return metric_label(self.runs[0].config)

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @property
    def last(self) -> int:
        """The last round that all clients of all its runs have scored; 0 where there is none."""
        scored = [set(by_round) for by_round in self._accuracies]
        return max(set.intersection(*scored), default=0) if scored else 0

    def by_seed(self, number: int | None = None) -> dict[int, float]:
        """Seed to accuracy in a round, else in the last; of the runs that have one."""
        place = self.last if number is None else number
        found = zip(self.seeds, (one.get(place) for one in self._accuracies), strict=True)
        return {seed: 100 * accuracy for seed, accuracy in found if accuracy is not None}

    def values(self, number: int) -> list[float]:
        """Accuracy of each run in a round; empty where one of them has none."""
        found = list(self.by_seed(number).values())
        return found if len(found) == len(self.runs) else []

    def losses(self) -> list[float]:
        """Mean loss of the test answers' tokens of each run after the last round, in nats."""
        found = [run.rounds[self.last].get("test_loss") for run in self.runs]
        known = [float(loss) for loss in found if loss is not None]
        return known if len(known) == len(found) else []

    def a_round(self, *keys: str) -> float | None:
        """Mean over all rounds of training of the sum of these values of a record."""
        values = [sum(r[key] for key in keys) for run in self.runs for r in run.rounds[1:]]
        return statistics.fmean(values) if values else None

    @cached_property
    def _accuracies(self) -> list[dict[int, float | None]]:
        """Of each run, round to mean score, from 0 to 1."""
        return [{r["round"]: r["accuracy"] for r in facts.comparable(run)} for run in self.runs]


def common_metric(labels: Mapping[str, str]) -> str:
    """The label of the metric that all runs have.

    Args:
        labels: of each run's or experiment's metric, by its name.

    Raises:
        ConfigError: they have several, whose scores cannot be compared.
    """
    found = by_reason(labels.items(), key=str)
    if len(found) > 1:
        said = "; ".join(f"{label}: {first_few(names)}" for names, label in found)
        raise ConfigError(f"dataset.metric: scores by several metrics cannot be compared ({said})")
    return found[0][1]


def group(runs: Sequence[Run]) -> tuple[list[Group], list[Run]]:
    """Groups in the order of their first runs, and the runs that repeat a seed of a group.

    A config says where model and data set lie, fingerprint and commit what lay there; a run of a
    version that did not record these is in no group with one that did. Of runs with one config,
    model, data and seed, the one with the most rounds counts: they are no sample of seeds.
    """
    by_key: dict[tuple[str, ...], dict[int, Run]] = {}
    repeated = []
    for run in runs:
        key = digest_of(run.config, len(facts.clients(run))), _fingerprint(run), _data_commit(run)
        seeds = by_key.setdefault(key, {})
        other = seeds.setdefault(run.config.seed, run)
        if other is not run:
            shorter, longer = sorted((run, other), key=lambda one: len(one.rounds))
            seeds[run.config.seed] = longer
            repeated.append(shorter)
    members = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in by_key.values()]
    labels = _labels([of_group[0] for of_group in members])
    return list(map(Group, labels, members)), repeated


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Keys of the run config that differ between runs, with a value a run.

    The number of clients, the model's fingerprint and the data set's commit count as keys too.
    """
    flats = [
        {
            "clients": len(facts.clients(run)),
            FINGERPRINT: _fingerprint(run),
            DATA_COMMIT: _data_commit(run),
            **run.config.flat(),
        }
        for run in runs
    ]
    return {
        key: [flat[key] for flat in flats]
        for key in flats[0]
        if matters(key) and any(flat[key] != flats[0][key] for flat in flats)
    }


def notes(groups: Sequence[Group], repeated: Sequence[Run]) -> list[str]:
    """What a reader of the comparison has to know."""
    runs = [run for one in groups for run in one.runs]
    lost = ((run.path.name, line) for run in runs for line in lost_lines(run.rounds))
    found = [f"{first_few(of)}: {line}." for of, line in by_reason(lost, key=str)]
    keys = differing([one.runs[0] for one in groups])
    if data := [key for key in keys if key.startswith(("dataset.", "clients"))]:
        found.append(
            f"The groups answer different questions ({', '.join(data)} differ), so their "
            "accuracies are not of the same thing."
        )
    if FINGERPRINT in keys or "model.name" in keys:
        found.append("The groups start from different models: compare changes since round 0.")
    if alone := [one.label for one in groups if len(one.runs) < 2]:
        found.append(
            f"One seed only, so nothing is known of the spread: {'; '.join(alone)}. A difference "
            "from it may be chance."
        )
    if len({tuple(one.seeds) for one in groups}) > 1:
        found.append("The groups have different seeds; a seed also draws who has which questions.")
    for one in groups:
        totals = {total for run in one.runs if (total := _questions(run)) is not None}
        if len(totals) > 1:
            found.append(
                f"The runs of {one.label} have {' and '.join(map(str, sorted(totals)))} questions "
                "in all, which a seed does not change: the data set was not the same."
            )
    if unlike := [one.label for one in groups if one.last and not one.values(0)]:
        found.append(
            f"Not all clients scored round 0, so that there is no change since it: "
            f"{'; '.join(unlike)}."
        )
    if len({one.last for one in groups}) > 1:
        found.append("The groups are compared after different numbers of rounds.")
    if unfinished := [run.path.name for run in runs if not facts.complete(run)]:
        found.append(
            f"Not complete: {', '.join(unfinished)}. A group is shown up to the last round that "
            "all its runs have."
        )
    if repeated:
        names = ", ".join(run.path.name for run in repeated)
        found.append(f"Left out, since another run has the same config and seed: {names}.")
    starts = [start for run in runs for start in (run.environment, *_resumed(run))]
    if len({str(start.get("packages")) for start in starts}) > 1:
        found.append("The runs were done with different versions of packages.")
    if len({str(start.get("commit")) for start in starts}) > 1:
        found.append("The runs were done from different commits of the code.")
    if failed := sum(len(facts.failures(run)) for run in runs):
        found.append(f"Failures of clients: {failed}; each run's report names them.")
    return found


def _labels(runs: Sequence[Run]) -> list[str]:
    """The strategy's name, and where that does not tell groups apart what else differs.

    Where that is too much for a label, a number; the page has a table of what differs.

    Args:
        runs: one of each group.
    """
    keys = differing(runs)
    names = [run.config.strategy.name for run in runs]
    said = {"strategy.name"} | ({FINGERPRINT} if "model.name" in keys else set())
    others = [key for key in keys if key not in said]
    if len(set(names)) == len(names):
        return names
    labels = [
        f"{name}, " + ", ".join(f"{key} = {_shown(keys[key][place])}" for key in others)
        for place, name in enumerate(names)
    ]
    if max(map(len, labels)) <= MOST_LETTERS and len(set(labels)) == len(labels):
        return labels
    return [f"{name}, group {number}" for number, name in enumerate(names, start=1)]


def _fingerprint(run: Run) -> str:
    """Of the run's model, with its commit on the hub where it has one."""
    found = str((run.environment.get("model") or {}).get("fingerprint", "not recorded"))
    commit = run.environment.get("model_revision")
    return f"{found}, revision {commit[:12]}" if commit else found


def _data_commit(run: Run) -> str:
    """The data set's commit on the hub, "" where it has none."""
    return str(run.environment.get("dataset_revision") or "")[:12]


def _questions(run: Run) -> int | None:
    """How many the clients have together, of those that do not depend on the seed; None where not
    all clients have said. Cut from training questions, tests are rounded client by client."""
    kinds = ("train", "test") if run.config.dataset.test_fraction else ("test",)
    counted = [facts.questions(run, kind) for kind in kinds]
    if any(list(of_kind) != facts.clients(run) for of_kind in counted):
        return None
    return sum(sum(of_kind.values()) for of_kind in counted)


def _resumed(run: Run) -> list[dict[str, Any]]:
    """Environments in which the run went on."""
    starts = run.environment.get("resumed", [])
    return [start for start in starts if isinstance(start, dict)]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
