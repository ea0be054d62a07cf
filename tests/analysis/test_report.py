"""`fednano report` writes whole pages, and refuses what it cannot read."""

from __future__ import annotations

import html
import re
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


def test_a_report_is_one_file_with_its_figures_beside_it(reports: Reports) -> None:
    text = reports.plain.read_text()
    names = re.findall(r'<figure id="(\w+)">', text)
    drawn = ["accuracy", "loss", "kinds", "questions", "traffic", "seconds", "memory", "merge"]
    assert names == drawn
    files = {file.name for file in (reports.plain.parent / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert not re.search(r"<script|@import|<link (?![^>]*data:)|src=|url\((?!#)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


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


def test_a_figure_of_an_earlier_report_does_not_stay(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4)
    left = run.path / "report" / "figures" / "loss.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"old")
    assert fednano(run.path)[0] == 0
    assert not left.exists()
    assert "Only round 0 is there" in (run.path / "report" / "report.html").read_text()


def test_an_unfinished_run_and_its_failures_are_said_at_the_top(reports: Reports) -> None:
    text = reports.evil.read_text()
    top = text[: text.index("<h2>")]
    assert "not complete: 1 of 5 rounds" in top
    assert "Clients failed once, in 1 of the rounds" in top


def test_who_took_no_part_is_said_at_the_top_and_a_reason_once(tmp_path: Path) -> None:
    reasons = {f"client {k}": f"partition {k} has no question" for k in range(9)}
    failed = {"train_loss_per_client": {}, "failures": {"train": reasons, "evaluate": {}}}
    records = [a_record(0, 0.4, 9), *(a_record(k, 0.5, 9, **failed) for k in (1, 2))]
    folders = [write(tmp_path / name, records, seed=seed) for seed, name in enumerate("ab")]
    assert fednano(*folders, "--out", tmp_path / "out")[0] == 0
    text = (tmp_path / "out" / "a" / "report.html").read_text()
    top, rest = text.split("<h2>", 1)
    lost = "client 0, client 1, client 2 and 6 more took no part in the training of any round"
    assert lost in top
    assert rest.count("has no question") == 1
    together = (tmp_path / "out" / "report.html").read_text()
    assert f"a, b: {lost}" in together


def test_changed_keys_are_marked_with_their_defaults(reports: Reports) -> None:
    text = reports.plain.read_text()
    marked = re.findall(r'<tr class="changed"><th scope="row">([\w.-]+)</th>', text)
    assert set(marked) == {"num-server-rounds", "local-epochs", "dataset.path"}
    row = '<th scope="row">local-epochs</th><td>7</td><td>changed from 2</td>'
    assert f'<tr class="changed">{row}' in text


def test_numbers_of_the_page_are_those_of_the_metrics(reports: Reports) -> None:
    text = reports.plain.read_text()
    tiles = re.findall(r"<li>(.*?) <b>(.*?)</b>", text)
    assert tiles == [
        ("round 0 (frozen model)", "40.0 %"),
        ("last scored by all (round 2)", "70.0 %"),
        ("best (round 1)", "80.0 %"),
    ]
    row = re.search(r'<th scope="row">client 0</th>(.*?)</tr>', text)
    assert row is not None
    assert re.findall(r">([^<]+)</td>", row[1]) == ["50", "30.0 %", "60.0 %", "+30.0", "70.0 %"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-30] + "\n", "line 2 of metrics.jsonl is not whole"),
        (lambda text: "", "metrics.jsonl is empty"),
        (lambda text: text + "5\n", "line 3 of metrics.jsonl is no round's record"),
        (lambda text: text.splitlines()[1] + "\n", "is of round 1, round 0 is missing"),
        (lambda text: text.replace('"seconds": 20.0, ', ""), "line 1 of metrics.jsonl has no sec"),
        (lambda text: text.replace('"encoder": 2.0', '"encoder": "x"'), "client_seconds"),
        (lambda text: text.replace('"questions": 165', '"questions": null'), "accuracy_by"),
    ],
)  # fmt: skip
def test_metrics_that_are_not_whole_are_refused_with_their_line(
    damage: object, said: str, tmp_path: Path
) -> None:
    run = a_run(tmp_path / "run", 0.4, 0.5)
    file = run.path / "metrics.jsonl"
    file.write_text(damage(file.read_text()))
    code, output = fednano(run.path)
    assert code == 2
    assert said in output
    assert not (run.path / "report").exists()


def test_a_folder_that_is_no_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4)
    (tmp_path / "empty").mkdir()
    code, said = fednano(run.path, tmp_path / "empty")
    assert code == 2
    assert "is no run's folder: " in said
    assert not (run.path / "report").exists()


def test_a_run_of_another_version_is_read_and_the_keys_are_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4, batch_size=8)
    file = run.path / "config.json"
    file.write_text(file.read_text().replace('"batch-size"', f'"{EVIL_KEY}"'))
    code, said = fednano(run.path)
    assert code == 0
    text = (run.path / "report" / "report.html").read_text()
    notices = text[: text.index("<dl>")]
    for shown in (" ".join(said.split()), " ".join(notices.split())):
        assert "what it lacks has today's default: batch-size = 16." in html.unescape(shown)
        assert f"keys that are no more are left out: {EVIL_KEY}." in html.unescape(shown)
    assert EVIL_KEY not in text


def test_a_value_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4)
    file = run.path / "config.json"
    file.write_text(file.read_text().replace('"batch-size": 16', '"batch-size": "many"'))
    code, said = fednano(run.path)
    assert code == 2
    assert f"the run in {run.path} cannot be read: config.json: batch-size" in said


def test_a_config_without_one_known_key_is_no_runs(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4)
    (run.path / "config.json").write_text('{"model_type": "llava"}')
    code, said = fednano(run.path)
    assert code == 2 and "it is not that of a run" in said


def page_of(folder: Path, *accuracies: dict[str, float], **changes: Any) -> str:
    """The report's text, of rounds in which these clients were scored so."""
    records = [
        a_record(k, sum(found.values()) / len(found), accuracy_per_client=found)
        for k, found in enumerate(accuracies)
    ]
    assert fednano(write(folder, records, **changes))[0] == 0
    return (folder / "report" / "report.html").read_text()


def test_a_round_0_that_a_client_missed_is_compared_client_by_client_alone(tmp_path: Path) -> None:
    both = [{"0": 0.6, "1": 0.8}, {"0": 0.7, "1": 0.9}]
    text = page_of(tmp_path / "run", {"0": 0.5}, *both)
    assert re.findall(r"<li>(.*?) <b>(.*?)</b>", text) == [
        ("round 0 (frozen model)", "–"),
        ("last scored by all (round 2)", "80.0 %"),
        ("best (round 2)", "80.0 %"),
    ]
    assert "there is no mean of the frozen model to compare with" in text
    assert cells(text, "client 0")[1:4] == ["50.0 %", "70.0 %", "+20.0"]
    assert cells(text, "client 1")[1:4] == ["–", "90.0 %", "–"]
    assert cells(text, "mean")[1:4] == ["–", "80.0 %", "–"]
    assert "frozen model, mean" not in text
    assert "70.0 % in round 1, 80.0 % in round 2" in text


def test_rounds_of_different_single_clients_are_not_compared(tmp_path: Path) -> None:
    text = page_of(tmp_path / "run", {"0": 0.5}, {"1": 0.9})
    assert "No round was scored by all clients" in text and "without client 1." in text
    assert cells(text, "mean")[1:4] == ["50.0 %", "50.0 %", "+0.0"]
    assert "last scored by the most (round 0)" in text


def test_starts_of_a_resumed_run_are_rows(tmp_path: Path) -> None:
    again = {"after_round": 1, "packages": {"torch": "2.1"}, "started": "2026-01-03"}
    environment = {"packages": {"torch": "2"}, "resumed": [again, {"after_round": 2}]}
    run = write(tmp_path / "run", [a_record(0, 0.4)], environment)
    assert fednano(run)[0] == 0
    text = (run / "report" / "report.html").read_text()
    assert cells(text, "resumed 1: packages: torch") == ["2.1"]
    assert cells(text, "resumed 2: after_round") == ["2"]
    assert "after_round&#34;" not in text


def cells(text: str, first: str) -> list[str]:
    """A row's cells after the first."""
    row = re.search(rf'<th scope="row">{re.escape(first)}</th>(.*?)</tr>', text)
    assert row is not None, first
    return re.findall(r">([^<]+)</td>", row[1])


def test_where_to_write_has_to_be_clear(tmp_path: Path) -> None:
    apart = [a_run(tmp_path / place / "run", 0.4) for place in ("a", "b")]
    code, said = fednano(*(run.path for run in apart))
    assert code == 2 and "--out" in said
    code, said = fednano(apart[0].path, "--out", apart[1].path)
    assert code == 2 and "is a run's folder" in said
    folders = _folders(apart, tmp_path / "out")
    assert list(folders.values()) == [tmp_path / "out" / name for name in ("run", "b-run")]


def test_a_place_that_cannot_be_written_is_a_failure_without_a_traceback(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 0.4)
    (tmp_path / "file").write_text("")
    code, said = fednano(run.path, "--out", tmp_path / "file")
    assert code == 1
    assert "the report cannot be written" in said
