"""What a terminal shows while a comparison's runs last."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from fednano_flwr.analysis.experiments import board as of_board
from fednano_flwr.analysis.experiments import pool
from fednano_flwr.analysis.experiments.board import Board
from fednano_flwr.analysis.experiments.plan import Run
from fednano_flwr.analysis.experiments.pool import run_all
from fednano_flwr.analysis.experiments.worker import Outcome
from tests.compare import idle, made_up
from tests.terminal import Terminal


def test_a_terminal_shows_how_many_runs_have_ended_and_which_are_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "work", idle.work)
    monkeypatch.setattr(of_board, "time", SimpleNamespace(monotonic=lambda: 0.0))
    plan = made_up.a_plan(tmp_path, ["fedavg", "fednano"], seeds="0..1")
    plan.out.mkdir()
    out, shown = io.StringIO(), Terminal(80)
    seen: list[list[str]] = []
    board = Board(6, 2, 100.0, pytest.fail, Console(force_terminal=True, width=80, file=out))

    def look() -> None:
        board._live.refresh()
        shown.write(out.getvalue().replace("\n", "\r\n"))
        out.seek(0)
        out.truncate()
        seen.append(shown.lines)

    def on_start(run: Run) -> None:
        board.started(run)
        look()

    def on_end(run: Run, outcome: Outcome) -> None:
        board.over(run, f"{run}: ended", 50.0)
        look()

    with board:
        run_all(plan.runs, 2, plan.out, on_end, on_start)
    shown.write(out.getvalue().replace("\n", "\r\n"))
    assert seen[0][0].endswith("2 of 6 runs  0:00, about 1:40 left")
    assert seen[1][1:] == ["running: fedavg seed 0, fedavg seed 1"]
    assert seen[2][0].endswith(": ended") and "3 of 6 runs" in seen[2][1]
    assert "about 0:50 left" in seen[2][1] and seen[2][2].count("seed") == 1
    assert seen[2][0].removesuffix(": ended").replace("  ", " ") not in seen[2][2]
    assert seen[-1][-1].strip().startswith("━") and "6 of 6 runs" in seen[-1][-1]
    assert sorted(shown.lines) == sorted(f"{run}: ended" for run in plan.runs)
    assert shown.cursor


def test_without_a_terminal_only_the_lines_are_said(tmp_path: Path) -> None:
    plan = made_up.a_plan(tmp_path, ["fedavg"], seeds="0")
    said: list[str] = []
    with Board(1, 0, None, said.append, None) as board:
        board.started(plan.runs[0])
        board.over(plan.runs[0], "[1/1] [b]: ended", 0.0)
    assert said == ["[1/1] [b]: ended"]
