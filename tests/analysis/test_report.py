"""`fednano report` writes whole pages, and refuses what it cannot read."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from fednano_flwr.analysis.report import _folders
from fednano_flwr.cli.app import cli
from tests.analysis.conftest import Reports
from tests.analysis.made_up import a_record, a_run, write

EVIL_KEY = "<b>batch-length</b>"


def fednano(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["report", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def page(run: Path) -> str:
    """A report as it is written now."""
    code, said = fednano(run)
    assert code == 0, said
    return (run / "report" / "report.html").read_text()


def cells(text: str, first: str) -> list[str]:
    """A row's cells after the first."""
    row = re.search(rf'<th scope="row">{re.escape(first)}</th>(.*?)</tr>', text)
    assert row is not None, first
    return re.findall(r">([^<]+)</td>", row[1])


def tiles(text: str) -> list[tuple[str, str]]:
    return re.findall(r"<li>(.*?) <b>(.*?)</b>", text)


def test_a_report_is_one_file_with_its_figures_beside_it(reports: Reports) -> None:
    text = reports.plain.read_text()
    names = re.findall(r'<figure id="(\w+)">', text)
    drawn = "accuracy test_loss loss kinds questions traffic seconds memory merge".split()
    assert names == drawn
    files = {file.name for file in (reports.plain.parent / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert not re.search(r"<script|@import|<link (?![^>]*data:)|src=|url\((?!#)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_numbers_and_changed_keys_are_those_of_the_run(reports: Reports) -> None:
    text = reports.plain.read_text()
    assert tiles(text) == [
        ("Accuracy, round 0 (frozen model)", "40.0 %"),
        ("last scored by all (round 2)", "70.0 %"),
        ("best (round 1)", "80.0 %"),
        ("test loss (round 2)", "1.300"),
    ]
    assert cells(text, "client 0") == ["50", "30.0 %", "60.0 %", "+30.0", "70.0 %", "1.500 → 1.200"]
    marked = re.findall(r'<tr class="changed"><th scope="row">([\w.-]+)</th>', text)
    assert set(marked) == {"num-server-rounds", "local-epochs", "dataset.path"}
    row = '<th scope="row">local-epochs</th><td>7</td><td>changed from 2</td>'
    assert f'<tr class="changed">{row}' in text


def test_what_clients_and_files_say_stays_text(reports: Reports) -> None:
    """Names and reasons come from other machines; the page must not run them."""
    files = [file for page in reports.pages for file in page.parent.rglob("*.*")]
    checked = [file for file in files if file.suffix in (".html", ".svg")]
    assert len(checked) > 20
    for file in checked:
        assert not re.search(r"<script|<img|<b>run", file.read_text()), file
    text = reports.evil.read_text()
    assert "<h1>&lt;b&gt;run&amp;</h1>" in text
    for heading in ("Learning", "Merging", "Failures", "Run config", "Environment"):
        section = text[text.index(f"<h2>{heading}") :].split("<h2>")[1]
        assert "&lt;script&gt;alert" in section, heading


def test_several_runs_have_a_comparison_that_links_to_each(reports: Reports) -> None:
    assert reports.said.splitlines()[-1] == f"written to {reports.together}"
    text = reports.together.read_text()
    assert "80.0 ± 14.1" in text  # of 70 and 90
    hrefs = re.findall(r'href="([^"]+\.html)"', text)
    assert hrefs[:2] == [f"../seed%20{k}/report/report.html" for k in (0, 1)]
    assert all((reports.together.parent / unquote(href)).is_file() for href in hrefs)
    assert "One seed only, so nothing is known of the spread: fedavg" in text


def test_an_unfinished_run_and_its_failures_are_said_at_the_top(reports: Reports) -> None:
    top, _ = reports.evil.read_text().split("<h2>", 1)
    assert "not complete: 1 of 5 rounds" in top
    assert "Clients failed once, in 1 of the rounds" in top


def test_a_figure_of_an_earlier_report_does_not_stay(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4).path
    left = run / "report" / "figures" / "loss.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"old")
    assert "Only round 0 is there" in page(run)
    assert not left.exists()


def test_who_took_no_part_is_said_at_the_top_and_a_reason_once(tmp_path: Path) -> None:
    reasons = {f"client {k}": f"partition {k} has no question" for k in range(9)}
    failed = {"train_loss_per_client": {}, "failures": {"train": reasons, "evaluate": {}}}
    records = [a_record(0, 0.4, 9), *(a_record(k, 0.5, 9, **failed) for k in (1, 2))]
    folders = [write(tmp_path / name, records, seed=seed) for seed, name in enumerate("ab")]
    assert fednano(*folders, "--out", tmp_path / "out")[0] == 0
    top, rest = (tmp_path / "out" / "a" / "report.html").read_text().split("<h2>", 1)
    lost = "client 0, client 1, client 2 and 6 more took no part in the training of any round"
    assert lost in top
    assert rest.count("has no question") == 1
    assert f"a, b: {lost}" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("metrics.jsonl", lambda text: text[:-30] + "\n", "line 2 of metrics.jsonl is not whole"),
        ("metrics.jsonl", lambda text: "", "metrics.jsonl is empty"),
        ("metrics.jsonl", lambda text: text + "5\n", "line 3 of metrics.jsonl is no round's"),
        ("metrics.jsonl", lambda text: text.splitlines()[1] + "\n", "round 0 is missing"),
        ("metrics.jsonl", lambda text: text.replace('"seconds": 20.0, ', ""), "has no seconds"),
        ("metrics.jsonl", lambda text: text.replace('"encoder": 2.0', '"x": 2'), "client_seconds"),
        ("metrics.jsonl", lambda text: text.replace("165", "null"), "accuracy_by"),
        ("metrics.jsonl", lambda text: text.replace('"0": 50', '"0": "x"'), "test_questions"),
        ("config.json", lambda text: text.replace('"batch-size": 16', '"batch-size": "x"'), "batc"),
        ("config.json", lambda text: '{"model_type": "llava"}', "it is not that of a run"),
        ("environment.json", lambda text: "[]", "environment.json is no object"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_read_is_refused_before_anything_is_written(
    file: str, damage: Callable[[str], str], said: str, tmp_path: Path
) -> None:
    whole, run = (a_run(tmp_path / name, 0.4, 0.5).path for name in ("whole", "run"))
    (run / file).write_text(damage((run / file).read_text()))
    code, output = fednano(whole, run)
    assert code == 2 and said in output
    assert not (whole / "report").exists()


def test_a_run_of_another_version_is_read_and_the_keys_are_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4, batch_size=8).path
    file = run / "config.json"
    file.write_text(file.read_text().replace('"batch-size"', f'"{EVIL_KEY}"'))
    code, said = fednano(run)
    assert code == 0
    text = (run / "report" / "report.html").read_text()
    notices = text[: text.index("<dl>")]
    for shown in (" ".join(said.split()), " ".join(notices.split())):
        assert "what it lacks has today's default: batch-size = 16." in html.unescape(shown)
        assert f"keys that are no more are left out: {EVIL_KEY}." in html.unescape(shown)
    assert EVIL_KEY not in text


def scored(*accuracies: dict[str, float]) -> list[dict[str, Any]]:
    """Rounds in which these clients were scored so."""
    return [
        a_record(k, sum(found.values()) / len(found), accuracy_per_client=found)
        for k, found in enumerate(accuracies)
    ]


def test_a_round_0_that_a_client_missed_is_compared_client_by_client_alone(tmp_path: Path) -> None:
    records = scored({"0": 0.5}, {"0": 0.6, "1": 0.8}, {"0": 0.7, "1": 0.9})
    text = page(write(tmp_path / "run", records))
    assert [shown for _, shown in tiles(text)] == ["–", "80.0 %", "80.0 %", "1.200"]
    assert "there is no mean of the frozen model to compare with" in text
    assert cells(text, "client 0")[1:4] == ["50.0 %", "70.0 %", "+20.0"]
    assert cells(text, "client 1")[1:4] == ["–", "90.0 %", "–"]
    assert cells(text, "mean")[1:4] == ["–", "80.0 %", "–"]
    assert "frozen model, mean" not in text
    assert "70.0 % in round 1, 80.0 % in round 2" in text


def test_rounds_of_different_single_clients_are_not_compared(tmp_path: Path) -> None:
    text = page(write(tmp_path / "run", scored({"0": 0.5}, {"1": 0.9})))
    assert "No round was scored by all clients" in text and "without client 1." in text
    assert cells(text, "mean")[1:4] == ["50.0 %", "50.0 %", "+0.0"]
    assert "last scored by the most (round 0)" in text


def test_starts_of_a_resumed_run_are_rows(tmp_path: Path) -> None:
    again = {"after_round": 1, "packages": {"torch": "2.1"}, "started": "2026-01-03"}
    environment = {"packages": {"torch": "2"}, "resumed": [again, {"after_round": 2}]}
    text = page(write(tmp_path / "run", [a_record(0, 0.4)], environment))
    assert cells(text, "resumed 1: packages: torch") == ["2.1"]
    assert cells(text, "resumed 2: after_round") == ["2"]
    assert "after_round&#34;" not in text


def test_where_to_write_has_to_be_clear(tmp_path: Path) -> None:
    apart = [a_run(tmp_path / place / "run", 0.4) for place in ("a", "b")]
    one, other = (run.path for run in apart)
    (tmp_path / "file").write_text("")
    for arguments, code, words in (
        ((one, other), 2, "--out"),
        ((one, "--out", other), 2, "is a run's folder"),
        ((one, "--out", tmp_path / "file"), 1, "the report cannot be written"),
        ((tmp_path,), 2, "is no run's folder"),
    ):
        exit_code, said = fednano(*arguments)
        assert exit_code == code and words in said
    folders = _folders(apart, tmp_path / "out")
    assert list(folders.values()) == [tmp_path / "out" / name for name in ("run", "b-run")]
