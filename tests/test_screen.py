"""What `fednano run` draws on a terminal below its lines, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fednano_flwr.base import live
from fednano_flwr.base.live import clock_time, fitting, terminal
from fednano_flwr.cli import screen
from fednano_flwr.cli.screen import Screen, view
from fednano_flwr.rounds.snapshot import Snapshot, write
from tests.conftest import REPOSITORY
from tests.processes.screen import line
from tests.terminal import Terminal

FULL = Snapshot(
    round=3,
    rounds=50,
    phase="evaluation",
    asked=100,
    done=38,
    failed=2,
    steps=12345,
    per_second=17.3,
    accuracy=0.758,
    label="VQA accuracy",
    so_far=True,
    loss=1.1754,
    test_loss=0.9,
    left=4000.0,
    waiting="waiting for " + ", ".join(f"client {n} (no step yet)" for n in range(6)),
)


def drawn(found: Snapshot, width: int, elapsed: float = 75.0) -> list[str]:
    out = io.StringIO()
    console = Console(force_terminal=True, width=width, file=out, color_system="truecolor")
    console.print(view(found, elapsed, width))
    shown = Terminal(width)
    shown.write(out.getvalue().replace("\n", "\r\n"))
    return shown.lines


def test_a_wide_terminal_shows_all_of_it() -> None:
    lines = drawn(FULL, 130)
    assert lines[0].startswith("round 3 of 50  evaluation  ━━━")
    assert lines[0].endswith("38 of 100 clients, 2 failed")
    assert lines[1] == (
        "1:15, about 1:06:40 left · 12,345 steps, 17.3 a second · VQA accuracy 75.8 % (so far) · "
        "loss 1.175 · test loss 0.900"
    )
    assert lines[2] == f"{FULL.waiting[:129]}…"
    assert len(lines) == 3


def test_a_narrow_terminal_leaves_out_what_matters_least_and_wraps_nothing() -> None:
    assert drawn(FULL, 60)[1:] == [
        "1:15, about 1:06:40 left · 12,345 steps, 17.3 a second",
        f"{FULL.waiting[:59]}…",
    ]
    for width in range(20, 140):
        lines = drawn(FULL, width)
        assert len(lines) == 3 and max(map(len, lines)) <= width, (width, lines)


def test_the_bar_is_of_the_clients_that_are_waited_for_no_longer() -> None:
    def bar(done: int, failed: int) -> tuple[int, int]:
        out = io.StringIO()
        found = Snapshot(1, 2, "training", 10, done, failed)
        Console(force_terminal=True, no_color=True, width=120, file=out).print(view(found, 1, 120))
        first = out.getvalue().splitlines()[0]
        return first.count("━"), first.count("╸")

    assert bar(0, 0) == (0, 0)
    assert bar(3, 2) == bar(5, 0) == (live.WIDEST_BAR // 2, 0)
    assert bar(10, 0) == (live.WIDEST_BAR, 0)


def test_what_is_not_known_yet_is_left_out() -> None:
    assert drawn(Snapshot(None, 5, "who is there", asked=3), 80) == [
        f"who is there  {'━' * live.WIDEST_BAR}  0 of 3 clients",
        "1:15 · no step yet",
    ]
    last = Snapshot(2, 5, "training", 3, accuracy=0.5, label="accuracy", loss=0.25)
    assert drawn(last, 80)[1] == "1:15 · no step yet · accuracy 50.0 % (last round) · loss 0.250"


def test_the_first_part_is_kept_even_where_it_does_not_fit() -> None:
    assert fitting(["aaaa", "", "bb", "c"], 9).plain == "aaaa · bb"
    assert fitting(["aaaa", "bb"], 3).plain == "aaaa"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (75.9, "1:15"), (3599.9, "59:59"), (36000.0, "10:00:00")]
)
def test_times_are_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_the_screen_shows_that_flower_starts_then_where_the_run_is(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(force_terminal=True, width=60, file=out)
    shown = Terminal(60)

    def now() -> list[str]:
        on._live.refresh()
        shown.write(out.getvalue().replace("\n", "\r\n"))
        out.seek(0)
        out.truncate()
        return shown.lines

    file = tmp_path / "progress.json"
    with Screen(False, console) as on:
        assert on.watch is not None
        on.watch(file)
        assert len(now()) == 1 and now()[0].endswith(screen.CHECKING)
        on.starting()
        assert len(now()) == 1 and now()[0].endswith(screen.STARTING)
        on.show("fednano | [b]server[/b]")
        assert now() == ["[b]server[/b]"]
        write(file, FULL)
        assert now()[0] == "[b]server[/b]" and now()[1].startswith("round 3 of 50  evaluation")
        file.write_text("{")
        assert now() == ["[b]server[/b]"]
        write(file, FULL)
        on.show("INFO :      not for people")
        assert not shown.cursor and len(now()) == 4
    shown.write(out.getvalue().replace("\n", "\r\n"))
    assert shown.lines == ["[b]server[/b]"] and shown.cursor


def test_verbose_draws_nothing_and_asks_for_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    with Screen(True, Console(force_terminal=True, width=60, file=out)) as on:
        assert on.watch is None
        on.starting()
        on.show("INFO :      all of it")
    assert out.getvalue() == ""
    assert capsys.readouterr().out.splitlines() == [screen.STARTING, "INFO :      all of it"]


def test_a_pipe_is_no_terminal_whatever_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not sys.stdout.isatty() and terminal() is None


@pytest.fixture
def on_terminal(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs tests/processes/screen.py on a terminal; its exit status, what it wrote, its errors."""

    def run(width: int, *arguments: str, **variables: str) -> tuple[int, str, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE")
        usual = {key: value for key, value in os.environ.items() if key not in unset}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.screen", str(tmp_path), *arguments],
            env=usual | {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | variables,
            cwd=REPOSITORY,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        written = b""
        try:
            while more := os.read(ours, 65536):
                written += more
        except OSError:  # how Linux says that nobody has the other end any more
            pass
        os.close(ours)
        _, errors = process.communicate(timeout=30)
        return process.returncode, written.decode(), errors.decode()

    return run


OnTerminal = Callable[..., tuple[int, str, str]]


def wrapped(texts: list[str], width: int) -> list[str]:
    """As a terminal breaks them."""
    pieces = (text[i : i + width] for text in texts for i in range(0, len(text), width))
    return [piece.rstrip() for piece in pieces]


@pytest.mark.parametrize(
    ("width", "end", "error"),
    [
        (60, "well", ""),
        (100, "raise", "RuntimeError: the run broke"),
        (60, "interrupt", "KeyboardInterrupt"),
    ],
)
def test_what_scrolls_by_stays_whole_and_the_cursor_comes_back_however_it_ends(
    on_terminal: OnTerminal, width: int, end: str, error: str
) -> None:
    status, written, errors = on_terminal(width, "40", end)
    assert (status == 0) == (end == "well") and error in errors, errors
    shown = Terminal(width)
    shown.write(written)
    assert "\x1b[?25l" in written and shown.cursor
    assert shown.lines == wrapped([line(number) for number in range(40)], width)
    assert written.count("round 3 of 5  training") > 10 and shown.colours > 0


def test_no_color_is_respected(on_terminal: OnTerminal) -> None:
    status, written, errors = on_terminal(80, "5", "well", NO_COLOR="1")
    shown = Terminal(80)
    shown.write(written)
    assert (status, shown.colours) == (0, 0), errors
    assert "round 3 of 5  training" in written


def test_a_dumb_terminal_gets_plain_lines(on_terminal: OnTerminal) -> None:
    status, written, errors = on_terminal(80, "5", "well", TERM="dumb")
    expected = [screen.STARTING, *(line(number) for number in range(5))]
    assert (status, written.splitlines()) == (0, expected), errors
