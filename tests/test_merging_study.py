"""The study of merging: its choices, intervals and tables, and its runs on a tiny model."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from benchmarks.merging_study import command, demo, pictures, places, plan, tables
from benchmarks.merging_study.lines import lines_of
from benchmarks.merging_study.places import STEP, Places
from benchmarks.merging_study.plan import CORE, FEDAVG, PARTS, Part, Setting
from benchmarks.merging_study.rows import Cell, Row
from benchmarks.models import SHAPES, write_llava
from benchmarks.study import missing
from benchmarks.study.plan import ROOT
from benchmarks.study.rows import add_row, read_rows
from fednano_flwr.config import ConfigError
from fednano_flwr.privacy.checks import check_privacy
from fednano_flwr.strategies.registry import make_strategy
from tests.studies import here

ROWS = ROOT / "results" / "merging" / "runs.csv"
AT_20 = Setting(20, 0.1)


def a_row(cell: Cell, accuracy: float = 50.0, **changes: Any) -> Row:
    """A made-up row that ends with two rounds of this accuracy."""
    row = Row(
        **asdict(cell),
        dealt_seed=cell.seed,
        digest="d",
        commit="c",
        accuracy=accuracy,
        together=accuracy,
        worst_client=accuracy - 10,
        by_round=f"40.0 {accuracy} {accuracy}",
        by_client="1/2",
        upload_kb_a_round=100.0,
        step_mb_a_round=2.0,
        epsilon=None,
        seconds=10.0,
    )
    return replace(row, **changes)


def rows_of(name: str, accuracy: Callable[[Cell], float]) -> list[Row]:
    """Rows of all runs of a part."""
    part = PARTS[name]
    tuning = [a_row(cell, accuracy(cell)) for cell in part.tuning_cells(part.methods)]
    tests = part.test_cells(part.methods, tuning)
    return [*tuning, *(a_row(cell, accuracy(cell)) for cell in tests)]


GAIN = {FEDAVG: 0.0, "fedavg-exact": 4.0, "rolora": 3.0, "fednano-ef": 1.0}


def accuracy(cell: Cell) -> float:
    """Best at a rate of 0.005; ahead of fedavg by `GAIN`, and a little more at higher seeds."""
    gain = GAIN.get(cell.method, -1.0)
    return 80.0 - 100 * abs(cell.rate - 0.005) + gain + (0.1 * gain * cell.seed)


@pytest.fixture(scope="module")
def core() -> list[Row]:
    return rows_of(CORE, accuracy)


def test_the_rate_with_the_best_last_rounds_of_all_seeds_is_chosen_once_all_were_tried() -> None:
    part = PARTS[CORE]
    tried = part.tuning(FEDAVG, 20)
    ends = dict(zip(tried, ((90.0, 60.0), (80.0, 80.0), (70.0, 70.0), (60.0, 60.0)), strict=True))
    rows = [
        a_row(cell, by_round=f"99 {end - 1} {end + 1}")
        for choice, cells in tried.items()
        for cell, end in zip(cells, ends[choice], strict=True)
    ]
    assert part.choice(FEDAVG, 20, rows) == list(tried)[1]
    assert part.choice(FEDAVG, 20, rows[1:]) is None
    assert {cell.split for cells in tried.values() for cell in cells} == {"val"}
    assert not set(part.tuning_seeds) & set(part.seeds)


def test_all_methods_of_a_part_have_the_same_budget_and_no_more_than_is_allowed() -> None:
    for name, part in PARTS.items():
        rows = rows_of(name, accuracy)
        counts = [sum(row.method == method for row in rows) for method in part.methods]
        assert len(set(counts)) == 1
        if name not in (CORE, "others", plan.REAL):
            assert len(rows) <= 60
    assert sum(cell.seed in (10, 11) for cell in rows_of(CORE, accuracy)) == 7 * 3 * 4 * 2


@pytest.mark.parametrize("name", PARTS)
def test_every_method_of_a_part_can_be_run_with_the_parts_options(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Places, "data", lambda self, cell, seed: tmp_path)
    part = plan.part_of(name, [])
    for cell in part.tuning_cells(part.methods)[:: len(part.tuning_seeds)]:
        config = Places(tmp_path, tmp_path).planned(cell, cell.seed).config
        make_strategy(config.strategy)
        check_privacy(config)


def test_an_interval_holds_for_all_comparisons_of_its_table(core: list[Row]) -> None:
    line = next(one for one in lines_of(CORE, AT_20, core) if one.method == "fedavg-exact")
    assert line.apart == pytest.approx([4.0, 4.4, 4.8, 5.2, 5.6])
    half = t.ppf(1 - 0.05 / 6 / 2, 4) * statistics.stdev(line.apart) / math.sqrt(5)
    found = line.difference
    assert (found.mean, found.low, found.high) == pytest.approx((4.8, 4.8 - half, 4.8 + half))


def test_the_best_three_of_a_complete_core_go_to_the_real_llm(core: list[Row]) -> None:
    assert plan.part_of(plan.REAL, core).methods == (FEDAVG, "fedavg-exact", "rolora", "fednano-ef")
    assert plan.part_of(plan.REAL, core[:-1]).methods == (FEDAVG,)


def test_demo_json_compares_the_default_at_every_setting_of_a_complete_core(
    core: list[Row],
) -> None:
    found = demo.demo_results(core)
    assert found and demo.demo_results(core[:-1]) is None
    pair = found["paired"]["default-vs-fedavg@clients=20,alpha=0.1"]
    assert pair == found["paired"]["fedavg-exact-vs-fedavg@clients=20,alpha=0.1"]
    assert pair["low"] < pair["low_alone"] < pair["mean"] < pair["high_alone"] < pair["high"]
    assert (pair["comparisons"], pair["seeds"]) == (6, [0, 1, 2, 3, 4])
    assert len(found["settings"]) == 6 and len(found["rows"]) == 42


def test_a_table_says_what_was_not_run_or_replaced_and_which_rate_is_an_end(
    core: list[Row],
) -> None:
    rows = [
        replace(row, dealt_seed=row.seed + STEP) if (row.seed, row.clients) == (3, 20) else row
        for row in core
        if (row.method, row.clients) != ("rolora", 20)
    ]
    text = tables.methods_table(CORE, AT_20, rows)
    assert "Seed 3 cannot be dealt; 103 took its place" in text and "6 comparisons" in text
    assert "| `fedavg-exact` | 0.005 | 5 |" in text
    assert f"| `rolora` |  | {tables.NOT_RUN} |" in text
    assert "end of its rates" not in text and "worst client" in text
    edge = rows_of("others", lambda cell: 50 + cell.rate)
    text = tables.methods_table("others", AT_20, edge)
    assert "may lie beyond: `fedprox`" in text and "8 comparisons" in text
    assert "lowest tenth" in tables.methods_table(CORE, Setting(50, 1.0), rows)
    last = Cell("demo", FEDAVG, "", 20, 0.1, 0.02, 11, "val")
    rates = tables.rates_table(CORE, AT_20, [row for row in core if row.cell != last])
    assert f"| `fedavg` | 79.7 | 80.0 | 79.5 | {tables.NOT_RUN} |" in rates
    assert "| `fedavg-exact` | 87.9 | **88.2** |" in rates


def test_pictures_show_what_was_run(core: list[Row]) -> None:
    found = {picture.name: picture for picture in pictures.pictures(core)}
    assert set(found) == {"upload", "fisher", "participation", "privacy"}
    assert [name for name, one in found.items() if one.figure] == ["upload"]
    assert "50 clients, fedavg-exact: 84.8 % at 0.2" in found["upload"].words
    private = rows_of(plan.PRIVACY, accuracy)
    private = [replace(row, epsilon=3.0) for row in private]
    assert "fedsvd: 78.6 % at 3" in pictures.pictures(private)[-1].words


def test_the_page_shows_the_committed_rows() -> None:
    rows, page = read_rows(ROWS, Row), tables.PAGE.read_text("utf-8")
    assert tables.with_tables(page, rows) == page
    marked = "<!-- merging-study: methods core,20,0.1 -->\n<!-- end -->"
    assert "| `fedavg` |" in tables.with_tables(marked, rows)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A part of two methods at two clients, of a tiny model and few questions."""
    write_llava(tmp_path / "model", SHAPES["tiny"])
    part = Part(
        (FEDAVG, "fedavg-exact"),
        (Setting(2, 10.0),),
        {2: (0.001, 0.01)},
        common=f"model.name={tmp_path / 'model'} num-server-rounds=2 local-epochs=1",
        seeds=(0,),
        tuning_seeds=(10,),
    )
    for module in (command, tables):
        monkeypatch.setattr(module, "part_of", lambda name, rows: part)
    monkeypatch.setitem(plan.PARTS, "tiny", part)
    monkeypatch.setitem(places.SIZES, 2, (20, 6, 6))
    monkeypatch.setattr(missing, "run_all", here)
    monkeypatch.setattr(tables, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    tables.PAGE.write_text("<!-- merging-study: methods tiny,2,10 -->\n<!-- end -->\n")
    return Places(tmp_path / "no-model", tmp_path / "out")


def test_the_study_runs_what_has_no_row_and_nothing_else(tiny: Places, tmp_path: Path) -> None:
    file, said = tmp_path / "runs.csv", list[str]()
    assert command.study(tiny, ["tiny"], file, 1, said.append) == [] and len(said) == 6
    rows = read_rows(file, Row)
    assert len({row.cell for row in rows}) == 6
    for row in rows:
        counts = [tuple(map(int, one.split("/"))) for one in row.by_client.split()]
        shares = [100 * hits / asked for hits, asked in counts]
        assert len(shares) == 2 and sum(asked for _, asked in counts) == 6
        assert row.accuracy == pytest.approx(statistics.fmean(shares))
        assert row.worst_client == pytest.approx(min(shares)) and row.dealt_seed == row.seed
        assert len(row.rounds) == 3 and row.rounds[-1] == pytest.approx(row.accuracy, abs=1e-4)
        assert row.upload_kb_a_round > 0 and row.seconds > 0
    assert len({row.rounds[0] for row in rows if row.split == "test"}) == 1  # the frozen model
    assert "| `fedavg-exact` | 0.0" in tables.PAGE.read_text()
    # Again: nothing is missing. Without a row: that run alone, with the same result.
    command.study(tiny, ["tiny"], file, 1, said.append)
    assert len(said) == 6
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    command.study(tiny, ["tiny"], file, 1, said.append)
    assert len(said) == 7 and read_rows(file, Row)[-1].by_round == rows[-1].by_round
    assert "3 done, 0 to do" in command.plan_lines(tiny, ["tiny"], file, 1)[0]


def test_a_row_of_other_questions_counts_as_not_run(tiny: Places, tmp_path: Path) -> None:
    cell = plan.PARTS["tiny"].tuning_cells([FEDAVG])[0]
    file, run = tmp_path / "runs.csv", tiny.planned(cell, cell.seed)
    add_row(file, a_row(cell, digest=tiny.digest(run)))
    add_row(file, a_row(replace(cell, options="no-such-key=1")))
    elsewhere = replace(cell, task=plan.EASY, clients=20)  # its model is not here
    add_row(file, a_row(elsewhere))
    assert [row.cell for row in command.valid_rows(tiny, file)] == [cell, elsewhere]
    problems = Path(run.config.dataset.path) / "problems.json"
    problems.write_text(problems.read_text() + "\n")
    for cached in (places.folder_digest, places.is_valid):
        cached.cache_clear()
    assert [row.cell for row in command.valid_rows(tiny, file)] == [elsewhere]


def test_a_strategys_digest_leaves_out_keys_that_it_does_not_read(tiny: Places) -> None:
    cell = plan.PARTS["tiny"].tuning_cells([FEDAVG])[0]
    run = tiny.planned(cell, cell.seed)

    def digest(**changes: Any) -> str:
        strategy = replace(run.config.strategy, **changes)
        return tiny.digest(replace(run, config=replace(run.config, strategy=strategy)))

    assert digest(proximal_mu=0.5) == digest()
    assert len({digest(), digest(weight_by="equal"), digest(name="fedprox")}) == 3
    assert digest(name="fedprox", proximal_mu=0.5) != digest(name="fedprox")


def test_another_seed_takes_the_place_of_one_that_cannot_be_dealt(
    tiny: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = plan.PARTS["tiny"].tuning_cells([FEDAVG])[0]
    assert tiny.dealt(cell).seed == cell.seed
    why = places.why_not_dealt
    monkeypatch.setattr(places, "why_not_dealt", lambda d, seed, n: seed < 100 or why(d, seed, n))
    assert tiny.dealt(cell).seed == cell.seed + STEP
    impossible = replace(cell, options=f"{cell.options} dataset.min-partition-size=11")
    with pytest.raises(ConfigError, match="min-partition-size"):
        tiny.dealt(impossible)


def test_a_private_run_in_which_not_all_clients_train_is_a_row_with_its_budget(
    tiny: Places, tmp_path: Path
) -> None:
    pytest.importorskip("dp_accounting")
    cell, file = plan.PARTS["tiny"].tuning_cells([FEDAVG])[0], tmp_path / "runs.csv"
    options = f"{cell.options} {PARTS[plan.PRIVACY].common} {PARTS[plan.PRIVACY].shown[0]}"
    said = list[str]()
    assert not command.do_missing(tiny, [replace(cell, options=options)], file, 1, said.append)
    (row,) = read_rows(file, Row)
    assert row.options == options and row.epsilon and "(" in said[0]


def test_easy_vqas_validation_questions_are_no_training_questions(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    places.write_easy(tmp_path, seed=0)
    train, val, test = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("train", "val", "test")
    )
    assert (len(train), len(val), len(test)) == (600, 100, 200)
    pairs = [{(row["image"], row["question"]) for row in split} for split in (train, val)]
    assert not pairs[0] & pairs[1]
    assert all((tmp_path / row["image"]).is_file() for row in (*train, *val, *test))


def test_a_method_without_a_file_is_said_and_a_run_that_fails_has_no_row(
    tiny: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = replace(plan.PARTS["tiny"], methods=(FEDAVG, "no-such"))
    monkeypatch.setattr(command, "part_of", lambda name, rows: part)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    file = tmp_path / "runs.csv"
    failed = command.study(tiny, ["tiny"], file, 1, lambda line: None)
    assert "no-such.toml" in failed[0] and len(failed) == 3 and read_rows(file, Row) == []
