"""The study on the real LLM: its arithmetic, its rows, and its runs on a tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.models import SHAPES, write_llava
from benchmarks.real_study import command, pages, plan
from benchmarks.real_study.plan import (
    GERMAN,
    MIXTURE,
    SCIENCEQA,
    Places,
    chosen_rates,
    tuning_cells,
)
from benchmarks.real_study.rows import Cell, Row, packed, unpacked
from benchmarks.real_study.share import NO_GAIN, Scores, share_of_gain
from benchmarks.real_study.whole import CENTRALIZED, FROZEN, LORA
from benchmarks.study import marks, missing
from benchmarks.study.main import carry_out, parse, parser_of
from benchmarks.study.plan import ROOT
from benchmarks.study.rows import add_row, read_rows
from fednano_demo.generate import write_dataset
from tests.studies import here

ROWS = ROOT / "results" / "real" / "runs.csv"


def scores(frozen: float, adapters: float, lora: float, count: int = 200) -> Scores:
    """Questions of which these shares are right; the first ones always are."""
    places = np.arange(count) / count
    return Scores(*((places < share).astype(float) for share in (frozen, adapters, lora)))


def a_row(cell: Cell, values: Scores | None = None, **changes: Any) -> Row:
    """A made-up row; of a centralized method with one of three models' answers."""
    right = {FROZEN: 0, CENTRALIZED: 1, LORA: 2}.get(cell.method, 1)
    known = (values or scores(0.4, 0.5, 0.6))[right]
    bits, losses = packed(known, 1 - known)
    row = Row(
        *cell,
        digest="d",
        commit="c",
        frozen=None if cell.method == LORA else 40.0,
        accuracy=100 * float(known.mean()),
        mean_client=1.0,
        worst_client=2.0,
        loss=3.0,
        train_loss=None,
        upload_kb_a_round=None,
        step_mb_a_round=None,
        seconds=10.0,
        peak_mb=5.0,
        questions=len(known),
        right=bits,
        losses=losses,
    )
    return replace(row, **changes)


def test_a_share_is_the_quotient_of_the_gains_of_the_seeds_means() -> None:
    found = share_of_gain([scores(0.4, 0.5, 0.6), scores(0.4, 0.6, 0.8)])
    assert found["mean"] == pytest.approx((0.1 + 0.2) / (0.2 + 0.4))
    assert "reason" not in found


def test_an_interval_holds_what_resampling_seeds_and_questions_gives() -> None:
    # All that varies is which of two seeds are drawn: shares 0.25 (twice one), 0.5, 0.6.
    same = [Scores(*(np.full(5, x) for x in one)) for one in ((0, 1, 4), (0, 3, 4))]
    found = share_of_gain(same)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.5, 0.25, 0.75))
    few, many = (share_of_gain([scores(0.4, 0.5, 0.6, count)]) for count in (100, 2000))
    assert few["low"] < many["low"] < many["mean"] < many["high"] < few["high"]
    # Delta method, one seed: 0.1 and 0.2 of the questions are gained, the former among the latter.
    deviation = np.sqrt(0.5 * 0.5 / (0.2 * 2000))
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_there_is_no_share_where_lora_gains_nothing() -> None:
    found = share_of_gain([scores(0.4, 0.5, 0.4), scores(0.4, 0.5, 0.3)])
    assert found == {"mean": None, "low": None, "high": None, "reason": NO_GAIN}


def test_there_is_no_interval_where_loras_gain_may_be_chance() -> None:
    rng = np.random.default_rng(0)
    chance = Scores(*((rng.random(100) < share).astype(float) for share in (0.5, 0.5, 0.55)))
    found = share_of_gain([chance])
    assert found["mean"] is not None and found["low"] is None and found["high"] is None
    assert found["reason"].startswith(NO_GAIN) and "%" in found["reason"]


def test_a_rows_questions_come_back(tmp_path: Path) -> None:
    right, losses = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0], [0.25 * k for k in range(9)]
    bits, each = packed(right, losses)
    cell = Cell(GERMAN, LORA, 0.0003, 1, "test")
    row = replace(a_row(cell), questions=9, right=bits, losses=each)
    add_row(tmp_path / "runs.csv", row)
    (read,) = read_rows(tmp_path / "runs.csv", Row)
    assert read == row and read.cell == cell
    assert [list(values) for values in unpacked(read)] == [right, losses]
    with pytest.raises(ValueError, match="part"):
        packed([0.5], [1.0])


def test_a_row_takes_the_place_of_its_cells_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    one, other = (Cell(GERMAN, "locft", 0.001, seed, "test") for seed in (0, 1))
    for row in (a_row(one), a_row(other), a_row(one, digest="new")):
        add_row(file, row)
    assert [(row.seed, row.digest) for row in read_rows(file, Row)] == [(1, "d"), (0, "new")]
    file.write_text(file.read_text().replace("locft,0.001", "locft,much"))
    with pytest.raises(ValueError, match="line 2"):
        read_rows(file, Row)


@pytest.mark.parametrize("change", ["cut", "twice"])
def test_a_damaged_line_or_a_run_with_two_lines_is_no_row(tmp_path: Path, change: str) -> None:
    file = tmp_path / "runs.csv"
    add_row(file, a_row(Cell(GERMAN, "locft", 0.001, 0, "test")))
    head, line = file.read_text().splitlines()
    after = {"cut": line.rpartition(",")[0], "twice": f"{line}\n{line}"}[change]
    file.write_text(f"{head}\n{after}\n")
    with pytest.raises(ValueError, match={"cut": "line 2", "twice": "locft"}[change]):
        read_rows(file, Row)


def test_the_rate_with_the_lowest_validation_loss_is_chosen_once_all_were_tried() -> None:
    cells = [cell for cell in tuning_cells(GERMAN) if cell.method == "fedavg"]
    rows = [a_row(cell, loss=loss) for cell, loss in zip(cells, (0.7, 0.5, 0.6, 0.8), strict=True)]
    assert chosen_rates(GERMAN, rows) == {"fedavg": cells[1].rate}
    assert chosen_rates(GERMAN, rows[1:]) == {}


def rows_of(task: str, seeds: tuple[int, ...]) -> list[Row]:
    """Rows of a whole task, with a share of 0.5."""
    tuning = tuning_cells(task)
    rates = chosen_rates(task, [a_row(cell) for cell in tuning])
    cells = [cell for cell in plan.test_cells(task, rates) if cell.seed in seeds]
    return [a_row(cell) for cell in (*tuning, *cells)]


def test_premise_and_tables_say_what_has_not_been_run() -> None:
    rows = rows_of(GERMAN, (0, 2))
    found = pages.premise(rows)["share_of_lora_gain"]
    assert found[GERMAN]["mean"] == pytest.approx(0.5) and found[GERMAN]["seeds"] == [0, 2]
    assert found[SCIENCEQA]["mean"] is None and found[SCIENCEQA]["reason"] == pages.NOT_RUN
    assert pages.methods_table(rows, GERMAN).count("| 2 |") == len(plan.before_llm(GERMAN))
    others = [replace(row, seed=plan.TUNING_SEED) for row in rows if row.split == "test"]
    assert pages.methods_table([*rows, *others], GERMAN) == pages.methods_table(rows, GERMAN)
    assert pages.methods_table(rows, SCIENCEQA).count(pages.NOT_RUN) == len(plan.METHODS)
    assert f"0.0003: {pages.NOT_RUN}" in pages.rates_table(rows, SCIENCEQA)
    assert "0.50 (" in pages.premise_table(rows)


def test_the_page_and_premise_show_the_committed_rows() -> None:
    rows = read_rows(ROWS, Row)
    page = pages.PAGE.read_text("utf-8")
    assert len(marks.mark("real-study").findall(page)) == page.count("<!-- real-study:") == 9
    assert pages.with_tables(page, rows) == page
    committed = json.loads(ROWS.with_name("premise.json").read_text("utf-8"))
    assert committed == json.loads(json.dumps(pages.premise(rows)))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """The demo's questions and a tiny model for the study's, one seed and one rate a method."""
    write_llava(tmp_path / "model", SHAPES["tiny"])
    write_dataset(tmp_path / "demo", train=40, val=12, test=12)
    monkeypatch.setattr(plan, "write_text_only", lambda folder, source, seed: copy(source, folder))
    for module in (plan, command):
        monkeypatch.setattr(module, "SEEDS", (0,))
    few = {name: plan.METHODS[name] for name in (FROZEN, "fedavg", CENTRALIZED, LORA)}
    few = {name: method._replace(rates=method.rates[:1]) for name, method in few.items()}
    monkeypatch.setattr(plan, "METHODS", few)
    inside = {name: one._replace(rates=one.rates[:1]) for name, one in plan.INSIDE.items()}
    monkeypatch.setattr(plan, "INSIDE", inside)
    monkeypatch.setattr(missing, "run_all", here)
    for name in ("PAGE", "INSIDE_PAGE"):
        monkeypatch.setattr(pages, name, tmp_path / "page.md")
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs.csv")
    pages.PAGE.write_text("<!-- real-study: methods scienceqa -->\n<!-- end -->\n")
    return Places(tmp_path / "model", tmp_path / "demo" / "scienceqa", tmp_path / "out")


def copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def test_the_study_runs_what_has_no_row_and_nothing_else(tiny: Places, tmp_path: Path) -> None:
    file, said = tmp_path / "runs.csv", list[str]()
    assert command.study(tiny, [SCIENCEQA], file, 1, said.append) == [] and len(said) == 11
    rows = {(row.method, row.split): row for row in read_rows(file, Row)}
    assert len(rows) == 11
    frozen, federated, near, lora = (
        rows[name, "test"] for name in (FROZEN, "fedavg", CENTRALIZED, LORA)
    )
    # One model, split and not.
    assert frozen.accuracy == federated.frozen == near.frozen
    assert near.accuracy == pytest.approx(100 * unpacked(near)[0].mean())
    assert not federated.right and unpacked(lora)[0].mean() == pytest.approx(lora.accuracy / 100)
    assert lora.train_loss and near.train_loss and lora.train_loss != near.train_loss
    assert lora.peak_mb > 0 and lora.upload_kb_a_round is None and federated.upload_kb_a_round
    assert "fedavg" in pages.PAGE.read_text() and (tmp_path / "premise.json").is_file()
    # Again: nothing is missing. Without a row: that run alone, with the same result.
    assert command.study(tiny, [SCIENCEQA], file, 1, said.append) == [] and len(said) == 11
    lines, last = file.read_text().splitlines(keepends=True), read_rows(file, Row)[-1]
    file.write_text("".join(lines[:-1]))
    command.study(tiny, [SCIENCEQA], file, 1, said.append)
    again = read_rows(file, Row)[-1]
    assert len(said) == 12 and again.accuracy == last.accuracy and again.losses == last.losses
    assert "0 to do" in command.plan_lines(tiny, [SCIENCEQA], file, 1)[0]


def test_what_a_study_lacks_is_said_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*said: Any) -> list[str]:
        raise FileNotFoundError("problems.json")

    for dry_run in (True, False):
        with pytest.raises(SystemExit, match="problems"):
            carry_out(dry_run, lacking, lacking)
    monkeypatch.setattr("sys.argv", ["study", "--workers", "0"])
    with pytest.raises(SystemExit, match="2"):
        parse(parser_of("real", "", [GERMAN]), [GERMAN])


def test_rows_elsewhere_leave_the_page_alone(tiny: Places, tmp_path: Path) -> None:
    before, file = pages.PAGE.read_text(), tmp_path / "trial" / "runs.csv"
    add_row(file, a_row(Cell(SCIENCEQA, FROZEN, None, 0, "test")))
    command.write_all(file)
    assert pages.PAGE.read_text() == before and file.with_name("premise.json").is_file()


def test_a_row_of_another_model_counts_as_not_run(tiny: Places, tmp_path: Path) -> None:
    cell = Cell(SCIENCEQA, FROZEN, None, 0, "test")
    file = tmp_path / "runs.csv"
    add_row(file, a_row(cell, digest=tiny.digest(cell)))
    assert [row.cell for row in command.valid_rows(tiny, [cell], file)] == [cell]
    tokenizer = tiny.model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert command.valid_rows(tiny, [cell], file) == []


def test_vision_weights_count_where_there_are_pictures(tiny: Places) -> None:
    pytest.importorskip("easy_vqa")
    cells = [Cell(task, FROZEN, None, 0, "test") for task in (GERMAN, MIXTURE)]
    before = [tiny.digest(cell) for cell in cells]
    file = tiny.model / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if "vision" in name:
            weights[name] += 1
    save_file(weights, file, {"format": "pt"})
    after = [tiny.digest(cell) for cell in cells]
    assert before[0] == after[0] and before[1] != after[1]


def test_a_run_that_fails_has_no_row_and_the_others_have(
    tiny: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "METHODS", {FROZEN: plan.METHODS[FROZEN]})
    monkeypatch.setattr(plan, "INSIDE", {})
    file = tmp_path / "runs.csv"
    (tiny.model / "model.safetensors").unlink()
    (reason,) = command.study(tiny, [SCIENCEQA], file, 1, lambda line: None)
    assert FROZEN in reason and read_rows(file, Row) == []


def test_methods_of_one_task_change_what_they_are_named_after(tiny: Places) -> None:
    pytest.importorskip("easy_vqa")

    def adapter(task: str, method: str) -> Any:
        return tiny.planned(Cell(task, method, 0.001, 0, "test")).config.adapter

    assert adapter(GERMAN, CENTRALIZED).rank == 16
    assert [adapter(GERMAN, f"rank-{rank}").rank for rank in (4, 64)] == [4, 64]
    sites = [adapter(MIXTURE, f"{site}-only").sites for site in ("image", "text")]
    assert sites == ["image", "text"]
    for method, expected in (("llm", "llm"), ("all-sites", "text,llm")):
        config = tiny.planned(Cell(GERMAN, method, 0.001, 0, "test")).config
        rates = config.learning_rate, config.adapter.llm_learning_rate
        assert config.adapter.sites == expected and rates == (0.003, 0.001)
    for task, more in plan.MORE.items():
        assert {cell.method for cell in tuning_cells(task)} >= set(more)
        assert not {cell.method for cell in tuning_cells(SCIENCEQA)} & set(more)


def test_merging_is_compared_with_fedavg_seed_by_seed() -> None:
    rows = rows_of(GERMAN, (0, 1, 2))
    rows = [
        replace(row, accuracy=row.accuracy + 2.0 + row.seed, loss=row.loss - 0.25)
        if row.method == "locft" and row.split == "test"
        else row
        for row in rows
    ]
    table = pages.against_table(rows)
    (line,) = (line for line in table.splitlines() if "locft" in line and GERMAN in line)
    # Differences of 2, 3 and 4 points: 3 ± 4.303 · 1 / √3.
    assert "+3.0 (+0.5 to +5.5)" in line and "-0.250 (-0.250 to -0.250)" in line
    assert "`fedavg`" not in table and CENTRALIZED not in table
    assert table.count(pages.NOT_RUN) == 2 * 3 * 2  # three methods of the two other tasks
