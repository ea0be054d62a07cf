"""What a terminal shows while a comparison's runs last, and how long they are said to take."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fednano_flwr.analysis.experiments import progress as of_progress
from fednano_flwr.analysis.experiments.progress import Progress, duration, seconds_left
from tests.analysis.made_up import a_plan
from tests.terminal import Terminal


def test_a_terminal_shows_how_many_runs_have_ended_and_which_are_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_progress, "time", SimpleNamespace(monotonic=lambda: 0.0))
    first, second, third = a_plan(tmp_path, ["fedavg"], seeds="0..2").runs
    out, shown = io.StringIO(), Terminal(80)

    def look() -> list[str]:
        progress._live.refresh()
        shown.write(out.getvalue().replace("\n", "\r\n"))
        out.seek(0)
        out.truncate()
        return shown.lines

    console = Console(force_terminal=True, width=80, file=out)
    with Progress(5, 2, 100.0, pytest.fail, console) as progress:
        progress.started(first)
        assert look()[0].endswith("2 of 5 runs  0:00, about 1:40 left")
        progress.started(second)
        assert look()[1:] == ["running: fedavg seed 0, fedavg seed 1"]
        progress.ended(first, "a line", 50.0)
        line, bar, running = look()
        assert line == "a line" and "3 of 5 runs" in bar and "about 0:50 left" in bar
        assert running == "running: fedavg seed 1"
        progress.started(third)
        progress.ended(third, "another", None)
        progress.ended(second, "the last", 0.0)
        assert look()[-1].strip().startswith("━") and "5 of 5 runs" in shown.lines[-1]
    shown.write(out.getvalue().replace("\n", "\r\n"))
    assert shown.lines == ["a line", "another", "the last"] and shown.cursor


def test_time_left_is_estimated_from_the_same_experiments_runs(tmp_path: Path) -> None:
    runs = a_plan(tmp_path, ["fedavg", "fednano"], seeds="0..3").runs
    assert seconds_left(runs[2:], {runs[0]: 10.0, runs[1]: 30.0}, 2) == (3 * 10 + 3 * 30) / 2
    assert seconds_left(runs[3:4], {runs[0]: 10.0}, 2) == 10
    assert seconds_left(runs, {}, 2) is None
    words = [duration(seconds) for seconds in (None, 80, 600, 7200)]
    assert words[1:] == ["about 80 s", "about 10 min", "about 2.0 h"]
    assert words[0].startswith("an unknown time")
