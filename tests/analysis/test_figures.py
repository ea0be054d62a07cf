"""Each figure draws what its record says, and is not drawn where there is nothing to draw."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes

from fednano_flwr.analysis.facts import read_run
from fednano_flwr.analysis.figures import cost, draw, learning, merging, shards
from fednano_flwr.analysis.figures.comparison import curves, ends
from fednano_flwr.analysis.groups import group
from fednano_flwr.analysis.picture import Picture
from fednano_flwr.data.shard import read_shards
from fednano_flwr.runs.results import Run
from tests.analysis.made_up import a_record, a_run, write


def panels(drawn: Picture) -> list[Axes]:
    assert drawn.figure is not None, drawn.reason
    return drawn.figure.axes


def lines(axes: Axes) -> dict[str, list[float]]:
    """Label to heights."""
    return {str(line.get_label()): [float(y) for y in line.get_ydata()] for line in axes.lines}


def heights(axes: Axes) -> list[list[float]]:
    """Of the bars of each colour."""
    return [[round(bar.get_height(), 6) for bar in bars] for bars in axes.containers]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return a_run(tmp_path_factory.mktemp("runs") / "made-up", 0.4, 0.6, 0.5)


def test_accuracy_has_a_line_a_client_the_mean_and_the_frozen_model(run: Run) -> None:
    (axes,) = panels(learning.accuracy(run))
    drawn = lines(axes)
    assert set(drawn) == {*(f"client {k}" for k in range(3)), "mean", "frozen model, mean"}
    assert drawn["mean"] == pytest.approx([40, 60, 50])
    assert drawn["client 0"] == pytest.approx([30, 50, 40])
    assert drawn["frozen model, mean"] == pytest.approx([40, 40])
    widths = {line.get_label(): line.get_linewidth() for line in axes.lines}
    assert widths["mean"] > 2 * widths["client 0"]


def test_many_clients_share_a_grey_and_one_entry_in_the_legend(tmp_path: Path) -> None:
    drawn = learning.accuracy(a_run(tmp_path / "run", 0.4, 0.5, clients=12))
    (axes,) = panels(drawn)
    assert len(axes.lines) == 12 + 2
    assert len({line.get_color() for line in axes.lines[:12]}) == 1
    assert drawn.figure is not None
    (legend,) = drawn.figure.legends
    assert len(legend.get_texts()) == 3


def test_a_round_that_not_all_clients_scored_is_not_in_the_mean(tmp_path: Path) -> None:
    few = {"accuracy_per_client": {"2": 0.9}}
    records = [a_record(0, 0.4), a_record(1, 0.9, **few), a_record(2, 0.5)]
    drawn = learning.accuracy(read_run(write(tmp_path / "run", records)))
    (axes,) = panels(drawn)
    assert lines(axes)["mean"] == pytest.approx([40, 50])
    assert lines(axes)["client 2"] == pytest.approx([50, 90, 60])
    assert "leaves out 1 round" in drawn.note
    assert "best 50.0 % in round 2" in drawn.words


def test_a_round_0_that_not_all_clients_scored_is_no_level_to_compare_with(tmp_path: Path) -> None:
    few = {"accuracy_per_client": {"2": 0.9}}
    run = read_run(write(tmp_path / "run", [a_record(0, 0.9, **few), a_record(1, 0.5)]))
    (axes,) = panels(learning.accuracy(run))
    assert lines(axes)["mean"] == [50] and "frozen model, mean" not in lines(axes)
    (axes,) = panels(learning.kinds(run))
    assert len(axes.containers) == 1


def test_loss_starts_in_round_1(run: Run, tmp_path: Path) -> None:
    (axes,) = panels(learning.loss(run))
    assert lines(axes)["mean"] == [2.0, 1.0]
    assert lines(axes)["client 2"] == pytest.approx([2.2, 1.1])
    assert list(axes.lines[-1].get_xdata()) == [1, 2]
    assert learning.loss(a_run(tmp_path / "frozen", 0.4)).figure is None


def test_kinds_have_a_bar_for_round_0_and_the_last_with_their_questions(run: Run) -> None:
    (axes,) = panels(learning.kinds(run))
    widths = [[round(bar.get_width(), 6) for bar in bars] for bars in axes.containers]
    assert widths == [[50, 60], [40, 50]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all (165)", "text only (40)"]


def test_traffic_has_a_panel_each_kind_and_both_ways_apart(run: Run) -> None:
    drawn = cost.traffic(run)
    by_round, by_step = panels(drawn)
    assert heights(by_round) == [[1, 200, 200], [300, 300, 300]]
    assert heights(by_step) == [[7, 7, 7], [0.04, 5, 5]]
    assert "kB" in by_round.get_ylabel()
    assert "MB" in by_step.get_ylabel()
    assert "401.0 kB up and 900.0 kB down" in drawn.words


def test_time_shows_waiting_and_the_rest_with_the_encoder_within(run: Run) -> None:
    parts, clock = panels(cost.seconds(run))
    waiting, rest = heights(parts)
    assert waiting == [1.5, 1.5, 1.5]
    assert rest == [3 - 1.5, 18 - 1.5, 18 - 1.5]
    assert lines(parts)["encoder (within either)"] == [2, 2, 2]
    assert heights(clock) == [[20, 20, 20]]


def test_memory_shows_gpus_only_where_they_were_used(run: Run, tmp_path: Path) -> None:
    (axes,) = panels(cost.memory(run))
    assert lines(axes) == {"server": [600] * 3, "largest client": [700, 701, 702]}
    peaks = {"client_process": 1.0, "server_process": 1.0, "client_gpu": 0.0, "server_gpu": 9.0}
    with_gpu = write(tmp_path / "gpu", [a_record(0, 0.4, peak_memory_mb=peaks)])
    (axes,) = panels(cost.memory(read_run(with_gpu)))
    assert lines(axes)["server's GPU"] == [9]


def test_notes_have_a_panel_a_kind_and_a_line_a_tensor(tmp_path: Path) -> None:
    seen = {
        "fisher base_model.model.image_adapter.lora_A.weight": 0.25,
        "fisher base_model.model.text_adapter.lora_A.weight": 0.5,
        "fisher scale": 3.0,
        "something new": 7.0,
        "epsilon": 1.5,
    }
    run = read_run(write(tmp_path / "run", [a_record(0, 0.4), a_record(1, 0.5, merge=seen)]))
    tensors, scale, other = panels(merging.notes(run))
    assert lines(tensors) == {"image_adapter.lora_A": [0.25], "text_adapter.lora_A": [0.5]}
    assert [line.get_ydata()[0] for line in scale.lines] == [3.0]
    assert other.get_title(loc="left") == "something new"
    (budget,) = panels(merging.budget(run))
    assert budget.lines[0].get_ydata()[0] == 1.5


def test_layers_of_the_language_model_share_a_line_each_kind(tmp_path: Path) -> None:
    """Hundreds of lines could not be told apart."""
    attention = "llm.model.language_model.layers.{}.self_attn.{}_proj"
    seen = {f"residual {attention.format(n, 'q')}": 0.1 * n for n in range(5)}
    seen |= {f"residual {attention.format(n, 'k')}": 0.6 for n in range(5)}
    seen |= {"residual base_model.model.text_adapter": 0.5}
    seen |= {f"fisher {attention.format(n, 'q')}.lora_{f}.weight": n for n in (1, 2) for f in "AB"}
    run = read_run(write(tmp_path / "run", [a_record(0, 0.4), a_record(1, 0.5, merge=seen)]))
    picture = merging.notes(run)
    residuals, fishers = map(lines, panels(picture))
    assert residuals.pop("llm: q_proj") == pytest.approx([0.2])
    assert residuals == {"llm: k_proj": [0.6], "text_adapter": [0.5]}
    assert fishers == {"llm: q_proj.lora_A": [1.5], "llm: q_proj.lora_B": [1.5]}
    assert "the mean over its layers" in picture.note


def test_questions_have_bars_of_training_and_test_a_client(run: Run) -> None:
    (axes,) = panels(shards.questions(run))
    assert heights(axes) == [[100, 110, 120], [50, 55, 60]]


def test_groups_are_dealt_again_and_only_shown_where_the_sums_are_the_clients(
    tiny_questions: Path, tmp_path: Path
) -> None:
    place = {"dataset__path": str(tiny_questions), "dataset__alpha": 1.0}
    other = a_run(tmp_path / "other", 0.4, 0.5, **place)
    assert "client 0 counted 100 train questions" in shards.groups(other).reason
    config = other.config
    dealt = list(read_shards(config.dataset, 0, 3))
    train = {str(k): len(shard.train) for k, shard in enumerate(dealt)}
    test = {str(k): len(shard.test) for k, shard in enumerate(dealt)}
    counted = {"train_questions_per_client": train, "test_questions_per_client": test}
    records = [a_record(0, 0.4, test_questions_per_client=test), a_record(1, 0.5, **counted)]
    axes = panels(shards.groups(read_run(write(tmp_path / "same", records, **place))))[0]
    (mesh,) = axes.collections
    sums = mesh.get_array().filled(0).sum(axis=0)
    assert list(sums) == list(train.values())


def test_every_figure_has_words_a_title_and_units_on_its_axes(run: Run) -> None:
    drawn = [one for shown in draw(run).values() for one in shown]
    assert {one.name for one in drawn if one.reason} == {"groups", "privacy"}
    for one in drawn:
        if one.reason:
            continue
        assert one.words.endswith(".") and any(map(str.isdigit, one.words)), one.name
        for axes in panels(one):
            assert axes.get_xlabel(), one.name
            assert axes.get_ylabel() or axes.get_yticklabels(), one.name


def test_a_run_of_round_0_alone_has_every_figure_or_a_reason(tmp_path: Path) -> None:
    drawn = [one for shown in draw(a_run(tmp_path / "frozen", 0.4)).values() for one in shown]
    assert {one.name for one in drawn if one.figure is None} == {
        "loss",
        "groups",
        "merge",
        "privacy",
    }
    assert all(one.reason for one in drawn if one.figure is None)


def test_a_run_without_a_test_question_has_a_reason_instead_of_accuracies(tmp_path: Path) -> None:
    unscored = {"accuracy_per_client": dict.fromkeys("012"), "accuracy_by": {}}
    records = [a_record(k, 0.0, **unscored) | {"accuracy": None} for k in range(2)]
    run = read_run(write(tmp_path / "run", records))
    groups, _ = group([run])
    for drawn in (learning.accuracy(run), learning.kinds(run), curves(groups), ends(groups)):
        assert drawn.figure is None and drawn.reason
