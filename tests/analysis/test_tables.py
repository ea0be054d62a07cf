"""What a comparison's tables and pictures show, for runs with made-up results."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from fednano_flwr.analysis.experiments.plan import Plan, PlannedRun
from fednano_flwr.analysis.experiments.results import Results, grouped, summarize
from fednano_flwr.analysis.experiments.tables import (
    cells,
    console_table,
    markdown,
    runs_csv,
    table_csv,
)
from fednano_flwr.analysis.figures.comparison import curves_by_setting, intervals
from fednano_flwr.config import ConfigError
from fednano_flwr.runs.results import Run
from tests.analysis.made_up import a_plan, finish

GAINS = {"fedavg": (0.0, 0.0, 0.0), "fedavg-exact": (0.01, 0.02, 0.03)}
"""At seeds 0, 1, 2, above the seed's own level."""
Finished = dict[PlannedRun, Run]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return a_plan(tmp_path, list(GAINS), vary=["dataset.alpha=0.1,1"])


@pytest.fixture
def finished(plan: Plan) -> Finished:
    return {
        run: finish(run, 0.5, 0.6 + run.seed / 100 + GAINS[run.experiment][run.seed])
        for run in plan.runs
    }


def results_of(plan: Plan, finished: Finished, failed: dict[PlannedRun, str] = {}) -> Results:  # noqa: B006
    return summarize(plan, finished, failed, "fednano compare x.toml")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_has_means_deviations_and_the_paired_difference(
    plan: Plan, finished: Finished
) -> None:
    # fedavg-exact ends at 61, 63, 65 %; against fedavg's 60, 61, 62 that is 1, 2, 3 points.
    assert cells(plan, results_of(plan, finished), plan.settings[0]) == [
        "fedavg|3|50.0 ± 0.0|61.0 ± 1.0|51.0 ± 1.0|66.0 ± 1.0|1.390|200|12.0|20.0|baseline".split(
            "|"
        ),
        "fedavg-exact|3|50.0 ± 0.0|63.0 ± 2.0|53.0 ± 2.0|68.0 ± 2.0|1.370|200|12.0|20.0|"
        "+2.0 (-0.5 to +4.5)".split("|"),
    ]


def test_results_are_in_points_and_name_the_default_too(plan: Plan, finished: Finished) -> None:
    results = results_of(plan, finished)
    assert list(results["paired"]) == [
        f"{name}-vs-fedavg@alpha={alpha}"
        for alpha in ("0.1", "1")
        for name in ("fedavg-exact", "default")
    ]
    pair = results["paired"]["default-vs-fedavg@alpha=1"]
    assert pair["mean"] == pytest.approx(2.0) and pair["seeds"] == [0, 1, 2]
    assert pair["low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert results["settings"][0] == {"label": "alpha=0.1", "values": {"dataset.alpha": 0.1}}
    row = results["rows"][3]
    named = {"experiment": "fedavg-exact", "setting": "alpha=1", "strategy": "fedavg-exact"}
    assert named.items() <= row.items()
    assert row["accuracy_by_round"] == pytest.approx([50.0, 63.0])
    assert results["failed"] == [] and results["baseline"] == "fedavg"


def test_without_varied_keys_the_names_have_no_setting(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, ["fedavg", "fedavg-exact-ef"], seeds="4")
    results = results_of(plan, {run: finish(run, 0.5, 0.6) for run in plan.runs})
    assert results["paired"] == {
        "fedavg-exact-ef-vs-fedavg": {"mean": 0.0, "low": None, "high": None, "seeds": [4]}
    }
    row = cells(plan, results, plan.settings[0])[1]
    assert row[-1] == "+0.0 (1 seed)" and "±" not in row[3]


def test_what_is_missing_or_differs_is_said_under_the_table(plan: Plan, finished: Finished) -> None:
    whole = console_table(plan, results_of(plan, finished))
    assert not [word for word in ("NOT ALL", "DIFFER", "failed") if word in whole]
    lost = next(run for run in plan.runs if (run.experiment, run.seed) == ("fedavg-exact", 1))
    del finished[lost]
    other = plan.runs[-1]
    newer = {"commit": "def-dirty", "packages": {"torch": "3"}, "cpus": 64, "code": "34cd"}
    finished[plan.runs[0]].environment["code"] = "12ab"  # the other runs do not say
    for what in ("model_revision", "dataset_revision"):
        newer[what], finished[plan.runs[0]].environment[what] = "b1", "a1"
    finished[other] = finish(other, 0.5, 0.6, **newer)
    results = results_of(plan, finished, {lost: "OSError: no room"})
    said = markdown(plan, results)
    assert "fedavg-exact alpha=0.1 lacks 1" in said
    assert "failed: fedavg-exact  alpha=0.1 seed 1: OSError: no room" in said
    assert "RUNS DIFFER in commit: abc (10 runs), def-dirty (1 runs)" in said
    assert "RUNS DIFFER in package torch: 2 (10 runs), 3 (1 runs)" in said
    for what in ("code: 12ab (1 runs), 34cd", "model_revision: a1 (1 runs), b1"):
        assert f"RUNS DIFFER in {what} (1 runs)" in said
    assert "RUNS DIFFER in dataset_revision: a1 (1 runs), b1 (1 runs)" in said
    assert "RUNS DIFFER in machine" in said and "uncommitted changes" in said
    assert results["paired"]["fedavg-exact-vs-fedavg@alpha=0.1"]["seeds"] == [0, 2]
    assert "`fednano compare x.toml`" in said


def test_an_experiment_on_other_data_than_the_baseline_is_named(
    plan: Plan, finished: Finished, tmp_path: Path
) -> None:
    assert "OTHER DATA" not in console_table(plan, results_of(plan, finished))
    (tmp_path / "skewed.toml").write_text('strategy.name = "fedavg"\ndataset.test-fraction = 0.3')
    other = a_plan(tmp_path, ["fedavg", "fedavg-exact"], others=["skewed"])
    found = {run: finish(run, 0.5, 0.6) for run in other.runs}
    said = console_table(other, results_of(other, found))
    assert "OTHER DATA OR MODEL: skewed differs from fedavg" in said
    assert said.count("OTHER DATA") == 1


def test_a_table_names_its_metric_and_two_metrics_make_none(tmp_path: Path) -> None:
    (tmp_path / "f1.toml").write_text('dataset.metric = "f1"')
    (tmp_path / "own.toml").write_text('dataset.metric = "nowhere:relaxed"')
    with pytest.raises(ConfigError, match=r"dataset\.metric.*token F1: f1.*relaxed: own"):
        a_plan(tmp_path, [], others=["f1", "own"])
    with pytest.raises(ConfigError, match=r"dataset\.metric.*accuracy: f1.*ANLS: f1"):
        a_plan(tmp_path, [], others=["f1"], vary=["dataset.metric=auto,anls"])
    plan = a_plan(tmp_path, [], others=["f1"])
    results = results_of(plan, {run: finish(run, 0.5, 0.6) for run in plan.runs})
    assert results["metric"] == "token F1"
    assert "token F1 in percent" in markdown(plan, results) and "mean client token F1 less" in (
        console_table(plan, results)
    )


def test_clients_that_failed_are_counted_and_named(plan: Plan, finished: Finished) -> None:
    assert "CLIENTS FAILED" not in console_table(plan, results_of(plan, finished))
    failures = {"train": {"client 1": "out of memory"}, "evaluate": {}}
    finished[plan.runs[0]].rounds[1]["failures"] = failures
    results = results_of(plan, finished)
    assert [row["client_failures"] for row in results["rows"]] == [1, 0, 0, 0]
    who = {"round": 1, "step": "train", "client": "client 1", "reason": "out of memory"}
    assert results["client_failures"] == [{"run": "fedavg  alpha=0.1 seed 0", **who}]
    said = "fedavg  alpha=0.1 seed 0 went on without them: client 1 (train of round 1): out of mem"
    assert f"CLIENTS FAILED, and {said}" in markdown(plan, results)
    assert [line["client_failures"] for line in rows(runs_csv(finished))] == ["1"] + ["0"] * 11


def test_a_reason_that_clients_and_runs_share_is_said_once(plan: Plan, finished: Finished) -> None:
    for one in finished.values():
        reasons = {f"client {k}": f"partition {k} has no question" for k in range(40)}
        one.rounds[1]["failures"] = {"train": reasons, "evaluate": {}}
    failed = dict.fromkeys(plan.runs[:5], "OSError: no room")
    said = markdown(plan, results_of(plan, finished, failed))
    assert said.count("has no question") == said.count("no room") == 1
    assert "client 2 (train of round 1) and 37 more" in said
    assert "and 9 more went on without them" in said and "and 2 more: OSError" in said


def test_runs_that_lost_other_clients_are_not_taken_for_one(plan: Plan, finished: Finished) -> None:
    for number, one in enumerate(finished.values()):
        one.rounds[1]["failures"] = {"train": {f"client {number}": "gone"}, "evaluate": {}}
    said = markdown(plan, results_of(plan, finished))
    for number in range(len(finished)):
        assert said.count(f"client {number} (train of round 1): gone") == 1


def test_a_round_that_not_all_clients_scored_is_neither_the_best_nor_in_the_line(
    tmp_path: Path,
) -> None:
    plan = a_plan(tmp_path, ["fedavg"], seeds="0..1")
    finished = {run: finish(run, 0.5, 0.9, 0.6) for run in plan.runs}
    del finished[plan.runs[1]].rounds[1]["accuracy_per_client"]["2"]
    results = results_of(plan, finished)
    assert [float(line["best"]) for line in rows(runs_csv(finished))] == pytest.approx([90, 60])
    assert results["rows"][0]["accuracy_by_round"] == [50.0, None, 60.0]
    (line,) = curves_by_setting({"": grouped(plan, finished)[plan.settings[0]]}).axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 2], [50.0, 60.0])


def test_the_csv_files_hold_what_others_need_to_compute_it_again(
    plan: Plan, finished: Finished
) -> None:
    runs = rows(runs_csv(finished))
    assert len(runs) == 12
    ends = [
        float(line["last"])
        for line in runs
        if (line["experiment"], line["dataset.alpha"]) == ("fedavg-exact", "1.0")
    ]
    assert ends == pytest.approx([61, 63, 65])
    assert float(runs[0]["worst"]) == pytest.approx(50) and runs[0]["commit"] == "abc"
    assert float(runs[0]["seconds"]) == 40 and float(runs[0]["best"]) == pytest.approx(60)
    table = rows(table_csv(plan, results_of(plan, finished)))
    assert float(table[1]["difference_mean"]) == pytest.approx(2.0)
    assert float(table[1]["test_loss_mean"]) == pytest.approx(1.37)
    assert float(runs[0]["test_loss"]) == pytest.approx(1.4)
    assert table[0]["difference_mean"] == "" and table[0]["dataset.alpha"] == "0.1"


def test_an_experiment_of_which_nothing_finished_is_shown_empty(
    plan: Plan, finished: Finished
) -> None:
    some = {run: one for run, one in finished.items() if run.experiment == "fedavg"}
    results = results_of(plan, some)
    assert cells(plan, results, plan.settings[0])[1] == ["fedavg-exact", "0", *["–"] * 9]
    assert results["paired"] == {}
    left, right = intervals({"": grouped(plan, some)[plan.settings[0]]}, plan.baseline).axes
    assert [line.get_ydata()[0] for line in left.lines if line.get_marker() == "D"] == [0]
    assert not [line for line in right.lines if line.get_marker() == "D"]


def test_pictures_show_each_experiment_and_each_seed(plan: Plan, finished: Finished) -> None:
    settings = {setting.label: groups for setting, groups in grouped(plan, finished).items()}
    left, right = intervals(settings, plan.baseline).axes[:2]
    assert [label.get_text() for label in left.get_yticklabels()] == list(GAINS)
    dots = [line for line in right.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert list(dots[0].get_xdata()) == pytest.approx([1, 2, 3])
    lines = curves_by_setting(settings).axes[1].lines
    assert [line.get_label() for line in lines] == ["fedavg (n = 3)", "fedavg-exact (n = 3)"]
    assert list(lines[1].get_ydata()) == pytest.approx([50, 63])
