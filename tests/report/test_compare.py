"""Runs are grouped by config, and a group's mean and spread are those of its seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.analysis.report import compare
from fednano_flwr.analysis.report.canvas import Picture
from fednano_flwr.analysis.report.comparison_page import COLUMNS, _row
from fednano_flwr.analysis.report.facts import read_run
from fednano_flwr.analysis.report.figures.side_by_side import curves, ends
from fednano_flwr.runs.results import Run
from tests.report.made_up import a_record, a_run, write

ONE_START = {"packages": {"torch": "2"}, "commit": "b"}


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    one = a_run(tmp_path / "a", 0.4, 0.5, seed=1, run__name="a")
    two = a_run(tmp_path / "b", 0.4, 0.7, seed=0, run__name="b")
    other = a_run(tmp_path / "c", 0.4, 0.6, strategy__name="fedavg")
    wide = a_run(tmp_path / "d", 0.4, 0.6, clients=4)
    groups, repeated = compare.group([one, two, other, wide])
    assert [group.seeds for group in groups] == [[0, 1], [0], [0]]
    assert [group.clients for group in groups] == [3, 3, 4]
    assert not repeated


def test_mean_and_spread_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / str(k), 0.4, a, seed=k) for k, a in enumerate((0.5, 0.6, 0.7))]
    ((group,), _) = compare.group(runs)
    found = group.accuracy(1)
    assert found.mean == pytest.approx(60)
    assert found.stdev == pytest.approx(math.sqrt((10**2 + 0 + 10**2) / 2))
    assert group.a_round("round_bytes_up", "round_bytes_down") == 500_000  # without round 0


def test_one_seed_has_no_spread_and_the_page_is_told(tmp_path: Path) -> None:
    groups, repeated = compare.group([a_run(tmp_path / "a", 0.4, 0.5)])
    assert groups[0].accuracy(1).stdev is None
    assert any("nothing is known of the spread" in note for note in compare.notes(groups, repeated))


def test_a_group_is_compared_after_the_last_round_that_all_its_runs_have(tmp_path: Path) -> None:
    long = a_run(tmp_path / "a", 0.4, 0.5, 0.9, seed=0)
    short = a_run(tmp_path / "b", 0.4, 0.7, seed=1, num_server_rounds=2)
    ((group,), repeated) = compare.group([long, short])
    assert group.last == 1
    assert group.values(1) == pytest.approx([50, 70])
    assert any("Not complete: b" in note for note in compare.notes([group], repeated))


def test_of_two_runs_with_one_seed_the_longer_counts(tmp_path: Path) -> None:
    short = a_run(tmp_path / "short", 0.4, num_server_rounds=1)
    whole = a_run(tmp_path / "whole", 0.4, 0.5)
    for given in ([short, whole], [whole, short]):
        ((group,), repeated) = compare.group(given)
        assert (group.runs, repeated) == ((whole,), [short])
        assert any("Left out" in note for note in compare.notes([group], repeated))


def test_other_data_and_other_seeds_are_said(tmp_path: Path) -> None:
    one = a_run(tmp_path / "a", 0.4, 0.5, dataset__alpha=0.1)
    two = a_run(tmp_path / "b", 0.4, 0.5, dataset__alpha=1.0, seed=1)
    groups, repeated = compare.group([one, two])
    text = " ".join(compare.notes(groups, repeated))
    assert "different questions (dataset.alpha differ)" in text
    assert "different seeds" in text
    assert [group.label for group in groups] == [
        "fedavg-exact, dataset.alpha = 0.1",
        "fedavg-exact, dataset.alpha = 1",
    ]


def with_model(folder: Path, fingerprint: str, seed: int, **config: Any) -> Run:
    """A run whose model had this fingerprint."""
    records = [a_record(0, 0.4), a_record(1, 0.5)]
    environment = {"model": {"fingerprint": fingerprint}}
    return read_run(write(folder, records, environment, seed=seed, **config))


def test_runs_of_other_models_at_the_same_place_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    runs = [with_model(tmp_path / str(k), f"{k % 2}abc", k) for k in range(4)]
    groups, repeated = compare.group(runs)
    assert [group.seeds for group in groups] == [[0, 2], [1, 3]]
    assert [group.label for group in groups] == [
        "fedavg-exact, model.fingerprint = 0abc",
        "fedavg-exact, model.fingerprint = 1abc",
    ]
    assert "different models" in " ".join(compare.notes(groups, repeated))


def test_runs_of_other_commits_of_a_data_set_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    records = [a_record(0, 0.4), a_record(1, 0.5)]
    for k in range(4):
        write(tmp_path / str(k), records, {"dataset_revision": f"{k % 2}" * 40}, seed=k)
    groups, repeated = compare.group([read_run(tmp_path / str(k)) for k in range(4)])
    assert [group.label for group in groups] == [
        "fedavg-exact, dataset.commit = 000000000000",
        "fedavg-exact, dataset.commit = 111111111111",
    ]
    assert "different questions" in " ".join(compare.notes(groups, repeated))


def test_models_at_other_places_are_told_apart_by_these(tmp_path: Path) -> None:
    runs = [with_model(tmp_path / name, name, 0, model__name=name) for name in ("a", "b")]
    groups, _ = compare.group(runs)
    assert [group.label for group in groups] == [
        "fedavg-exact, model.name = a",
        "fedavg-exact, model.name = b",
    ]


def test_a_number_of_questions_that_no_seed_explains_is_said(tmp_path: Path) -> None:
    def noted(place: str, fraction: float, moved: dict[str, int], cut: dict[str, int]) -> bool:
        usual = {"0": 50, "1": 55, "2": 60}
        runs = []
        for seed, (test, train) in enumerate(((usual, usual), (usual | moved, usual | cut))):
            counts = {"test_questions_per_client": test, "train_questions_per_client": train}
            records = [a_record(0, 0.4, **counts), a_record(1, 0.5, **counts)]
            changes = {"seed": seed, "dataset__test_fraction": fraction}
            runs.append(read_run(write(tmp_path / place / str(seed), records, **changes)))
        groups, repeated = compare.group(runs)
        assert len(groups) == 1
        return any("the data set was not the same" in n for n in compare.notes(groups, repeated))

    assert noted("more", 0.0, {"0": 51}, {})
    assert not noted("dealt otherwise", 0.0, {"0": 51, "1": 54}, {"0": 1})
    assert not noted("cut otherwise", 0.2, {"0": 51}, {"0": 49})
    assert noted("cut from more", 0.2, {"0": 51}, {})


def test_versions_of_resumed_starts_count(tmp_path: Path) -> None:
    def said(place: str, environment: dict[str, Any]) -> str:
        runs = [
            read_run(write(tmp_path / place / str(seed), [a_record(0, 0.4)], found, seed=seed))
            for seed, found in enumerate((ONE_START, environment))
        ]
        return " ".join(compare.notes(*compare.group(runs)))

    assert "different" not in said("same", ONE_START | {"resumed": [ONE_START]})
    other = ONE_START | {"packages": {"torch": "3"}, "commit": "c"}
    told = said("other", ONE_START | {"resumed": [other]})
    assert "different versions of packages" in told and "different commits" in told


def test_a_group_whose_round_0_lacks_a_client_has_no_change(tmp_path: Path) -> None:
    few = {"accuracy_per_client": {"0": 0.9}}
    lacking = [a_record(0, 0.9, **few), a_record(1, 0.5)]
    runs = [
        a_run(tmp_path / "a", 0.4, 0.6, seed=0),
        read_run(write(tmp_path / "b", lacking, seed=1)),
    ]
    groups, repeated = compare.group(runs)
    (group,) = groups
    assert group.last == 1 and group.values(0) == []
    assert group.values(1) == pytest.approx([60, 50])
    row = dict(zip(COLUMNS, _row(group), strict=True))
    assert row["round 0, %"] == row["change, points"] == "–"
    assert "Not all clients scored round 0" in " ".join(compare.notes(groups, repeated))


def test_runs_without_a_round_in_common_are_not_averaged(tmp_path: Path) -> None:
    few = {"accuracy_per_client": {"0": 0.9}}
    late = [a_record(0, 0.9, **few), a_record(1, 0.5)]
    runs = [
        a_run(tmp_path / "a", 0.4, seed=0, num_server_rounds=1),
        read_run(write(tmp_path / "b", late, seed=1)),
    ]
    ((group,), _) = compare.group(runs)
    assert group.last == 0 and group.values(0) == []


def test_curves_have_a_band_only_where_there_are_several_seeds(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / str(k), 0.4, a, seed=k) for k, a in enumerate((0.5, 0.7))]
    alone = a_run(tmp_path / "other", 0.4, 0.6, strategy__name="fedavg")
    groups, _ = compare.group([*runs, alone])
    drawn = curves(groups)
    assert isinstance(drawn, Picture)
    (axes,) = drawn.figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [  # type: ignore[arg-type]
        pytest.approx([40, 60]),
        pytest.approx([40, 60]),
    ]
    (band,) = axes.collections
    ends_at = [y for x, y in band.get_paths()[0].vertices if x == 1]
    assert max(ends_at) - min(ends_at) == pytest.approx(2 * math.sqrt(200))
    marks = ends(groups)
    assert isinstance(marks, Picture)
    assert sorted(marks.figure.axes[0].lines[0].get_xdata()) == pytest.approx([50, 70])  # type: ignore[arg-type]


def test_groups_that_differ_in_much_are_numbered(tmp_path: Path) -> None:
    many = {"learning_rate": 0.01, "adapter__alpha": 8.0, "batch_size": 4}
    runs = [a_run(tmp_path / "a", 0.4, 0.5), a_run(tmp_path / "b", 0.4, 0.5, **many)]
    groups, _ = compare.group(runs)
    assert [group.label for group in groups] == ["fedavg-exact, group 1", "fedavg-exact, group 2"]
    assert compare.differing([group.runs for group in groups]) == {
        "batch-size": [16, 4],
        "learning-rate": [0.002, 0.01],
        "adapter.alpha": [32.0, 8.0],
    }
