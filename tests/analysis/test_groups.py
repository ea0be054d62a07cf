"""Runs are grouped by config, and a group's mean and spread are those of its seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.analysis.facts import read_run
from fednano_flwr.analysis.figures.comparison import curves, ends
from fednano_flwr.analysis.groups import differing, group, notes
from fednano_flwr.analysis.pages import compared_columns, compared_row
from fednano_flwr.analysis.statistics import spread
from fednano_flwr.runs.results import Run
from tests.analysis.made_up import a_record, a_run, write

ONE_START = {"packages": {"torch": "2"}, "commit": "b"}
FEW = {"accuracy_per_client": {"0": 0.9}}
"""A round that one client scored."""


def labels(*runs: Run) -> list[str]:
    return [one.label for one in group(runs)[0]]


def said(*runs: Run) -> str:
    return " ".join(notes(*group(runs)))


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    one = a_run(tmp_path / "a", 0.4, 0.5, seed=1, run__name="a")
    two = a_run(tmp_path / "b", 0.4, 0.7, seed=0, run__name="b")
    other = a_run(tmp_path / "c", 0.4, 0.6, strategy__name="fedavg")
    wide = a_run(tmp_path / "d", 0.4, 0.6, clients=4)
    groups, repeated = group([one, two, other, wide])
    assert [one.runs for one in groups] == [(two, one), (other,), (wide,)] and not repeated


def test_mean_and_spread_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / str(k), 0.4, a, seed=k) for k, a in enumerate((0.5, 0.6, 0.7))]
    ((found,), _) = group(runs)
    assert found.by_seed() == found.by_seed(1) == pytest.approx({0: 50, 1: 60, 2: 70})
    assert spread(found.values(1)).stdev == pytest.approx(math.sqrt((10**2 + 0 + 10**2) / 2))
    assert found.a_round("round_bytes_up", "round_bytes_down") == 500_000  # without round 0


def test_a_group_is_compared_after_the_last_round_that_all_its_runs_have(tmp_path: Path) -> None:
    long = a_run(tmp_path / "a", 0.4, 0.5, 0.9, seed=0)
    short = a_run(tmp_path / "b", 0.4, 0.7, seed=1, num_server_rounds=2)
    ((found,), _) = group([long, short])
    assert found.last == 1
    assert found.values(1) == pytest.approx([50, 70])
    assert "Not complete: b" in said(long, short)


def test_of_two_runs_with_one_seed_the_longer_counts(tmp_path: Path) -> None:
    short = a_run(tmp_path / "short", 0.4, num_server_rounds=1)
    whole = a_run(tmp_path / "whole", 0.4, 0.5)
    for given in ([short, whole], [whole, short]):
        ((found,), repeated) = group(given)
        assert (found.runs, repeated) == ((whole,), [short])
        assert "Left out" in said(*given) and "nothing is known of the spread" in said(*given)


def test_other_data_and_other_seeds_are_said(tmp_path: Path) -> None:
    one = a_run(tmp_path / "a", 0.4, 0.5, dataset__alpha=0.1)
    two = a_run(tmp_path / "b", 0.4, 0.5, dataset__alpha=1.0, seed=1)
    assert "different questions (dataset.alpha differ)" in said(one, two)
    assert "different seeds" in said(one, two)
    assert labels(one, two) == [f"fedavg-exact, dataset.alpha = {alpha}" for alpha in ("0.1", "1")]


@pytest.mark.parametrize(
    ("environments", "key", "values", "what"),
    [
        (
            [{"model": {"fingerprint": f"{k}abc"}} for k in range(2)],
            "model.fingerprint",
            ["0abc", "1abc"],
            "different models",
        ),
        (
            [{"dataset_revision": f"{k}" * 40} for k in range(2)],
            "dataset.commit",
            ["000000000000", "111111111111"],
            "different questions",
        ),
    ],
)
def test_runs_of_other_models_or_data_at_one_place_are_no_seeds_of_one_another(
    tmp_path: Path, environments: list[Any], key: str, values: list[str], what: str
) -> None:
    runs = [
        a_run(tmp_path / str(k), 0.4, 0.5, environment=environments[k % 2], seed=k)
        for k in range(4)
    ]
    assert [one.seeds for one in group(runs)[0]] == [[0, 2], [1, 3]]
    assert labels(*runs) == [f"fedavg-exact, {key} = {value}" for value in values]
    assert what in said(*runs)


def test_models_at_other_places_are_told_apart_by_these(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / name, 0.4, environment={"model": {"fingerprint": name}}, model__name=name)
        for name in ("a", "b")
    ]
    assert labels(*runs) == ["fedavg-exact, model.name = a", "fedavg-exact, model.name = b"]


@pytest.mark.parametrize(
    ("fraction", "moved", "cut", "other"),
    [
        (0.0, {"0": 51}, {}, True),
        (0.0, {"0": 51, "1": 54}, {"0": 1}, False),  # dealt otherwise
        (0.2, {"0": 51}, {"0": 49}, False),  # cut otherwise
        (0.2, {"0": 51}, {}, True),
    ],
)
def test_a_number_of_questions_that_no_seed_explains_is_said(
    tmp_path: Path, fraction: float, moved: dict[str, int], cut: dict[str, int], other: bool
) -> None:
    usual = {"0": 50, "1": 55, "2": 60}
    runs = []
    for seed, (test, train) in enumerate(((usual, usual), (usual | moved, usual | cut))):
        counts = {"test_questions_per_client": test, "train_questions_per_client": train}
        records = [a_record(0, 0.4, **counts), a_record(1, 0.5, **counts)]
        changes = {"seed": seed, "dataset__test_fraction": fraction}
        runs.append(read_run(write(tmp_path / str(seed), records, **changes)))
    assert len(labels(*runs)) == 1
    assert ("the data set was not the same" in said(*runs)) is other


def test_versions_of_resumed_starts_count(tmp_path: Path) -> None:
    first, same, other = (
        a_run(tmp_path / str(seed), 0.4, environment=ONE_START | more, seed=seed)
        for seed, more in enumerate(
            (
                {},
                {"resumed": [ONE_START]},
                {"resumed": [{"packages": {"torch": "3"}, "commit": "c"}]},
            )
        )
    )
    assert "different" not in said(first, same)
    told = said(first, other)
    assert "different versions of packages" in told and "different commits" in told


def test_a_group_whose_round_0_lacks_a_client_has_no_change(tmp_path: Path) -> None:
    lacking = write(tmp_path / "b", [a_record(0, 0.9, **FEW), a_record(1, 0.5)], seed=1)
    runs = [a_run(tmp_path / "a", 0.4, 0.6), read_run(lacking)]
    ((found,), _) = group(runs)
    assert found.last == 1 and found.values(0) == [] and found.by_seed(0) == {0: 40}
    assert found.values(1) == pytest.approx([60, 50])
    row = dict(zip(compared_columns("accuracy"), compared_row(found), strict=True))
    assert row["round 0, %"] == row["change, points"] == "–"
    assert "Not all clients scored round 0" in said(*runs)


def test_runs_without_a_round_in_common_are_not_averaged(tmp_path: Path) -> None:
    late = write(tmp_path / "b", [a_record(0, 0.9, **FEW), a_record(1, 0.5)], seed=1)
    ((found,), _) = group([a_run(tmp_path / "a", 0.4, num_server_rounds=1), read_run(late)])
    assert found.last == 0 and found.values(0) == []


def test_curves_have_a_band_only_where_there_are_several_seeds(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / str(k), 0.4, a, seed=k) for k, a in enumerate((0.5, 0.7))]
    groups, _ = group([*runs, a_run(tmp_path / "other", 0.4, 0.6, strategy__name="fedavg")])
    drawn, marks = curves(groups).figure, ends(groups).figure
    assert drawn is not None and marks is not None
    (axes,) = drawn.axes
    for line in axes.lines:
        assert list(line.get_ydata()) == pytest.approx([40, 60])
    (band,) = axes.collections
    ends_at = [y for x, y in band.get_paths()[0].vertices if x == 1]
    assert max(ends_at) - min(ends_at) == pytest.approx(2 * math.sqrt(200))
    assert sorted(marks.axes[0].lines[0].get_xdata()) == pytest.approx([50, 70])


def test_groups_that_differ_in_much_are_numbered(tmp_path: Path) -> None:
    many = {"learning_rate": 0.01, "adapter__alpha": 8.0, "batch_size": 4}
    runs = [a_run(tmp_path / "a", 0.4, 0.5), a_run(tmp_path / "b", 0.4, 0.5, **many)]
    assert labels(*runs) == ["fedavg-exact, group 1", "fedavg-exact, group 2"]
    assert differing(runs) == {
        "batch-size": [16, 4],
        "learning-rate": [0.002, 0.01],
        "adapter.alpha": [32.0, 8.0],
    }
